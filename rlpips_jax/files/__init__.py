"""Image files in and out, listings, atomic writes, journals."""
