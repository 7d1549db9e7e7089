"""What a run shows: result tables, progress, curves of its schedule, pictures of its views."""
