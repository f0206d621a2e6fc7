"""The artefact store: folders named after a hash of what made them."""
