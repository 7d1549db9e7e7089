"""Weights from elsewhere and for elsewhere: warm starts, PyTorch files, single networks."""
