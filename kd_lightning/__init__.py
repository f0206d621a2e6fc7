"""kd_lightning."""
