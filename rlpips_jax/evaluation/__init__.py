"""How well a metric agrees with judgments, and how far it can be trusted: distortions, scores,
certificates."""
