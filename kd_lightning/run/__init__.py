"""One run, read from top to bottom."""
