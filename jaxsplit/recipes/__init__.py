"""Published results, and what the experiment files share."""
