"""What the methods share and no paper is about."""
