"""A grid of runs beside the undivided network: which of them is worth its cost."""
