"""One fit: training, checkpoints, restarts."""
