"""What a run shows: tables, progress, curves, views."""
