"""Kept work: artefacts under a hash of what made them."""
