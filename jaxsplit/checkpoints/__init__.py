"""Checkpoints of a workdir: saving, reading, resuming, integrity."""
