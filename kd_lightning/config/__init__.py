"""From typed overrides to a checked composition."""
