"""A teacher as an HTTP service."""
