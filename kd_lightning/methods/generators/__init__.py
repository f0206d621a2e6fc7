"""Conditional generators and the networks that go with them."""
