"""`python -m convert`: PyTorch checkpoints to this library's weight files and back, verified on request."""
