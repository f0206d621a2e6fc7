"""The artefact store: results of long computations, each in a folder named after a hash of its configuration."""
