"""Side-by-side measurements; results stand in RESULTS.md. Nothing imports this."""
