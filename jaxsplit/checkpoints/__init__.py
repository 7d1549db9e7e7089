"""Checkpoints of a workdir: saves them, reads them, resumes from them, checks their integrity."""
