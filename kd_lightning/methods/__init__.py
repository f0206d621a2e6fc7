"""One paper, one file: how one round of training goes."""
