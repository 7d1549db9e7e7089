"""Moves weights in and out of runs: warm starts, PyTorch files, single networks of a run."""
