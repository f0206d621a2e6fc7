"""The model that answers, and how much of it may be touched."""
