"""Teachers that are somewhere else."""
