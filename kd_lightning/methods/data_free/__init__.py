"""Distillation without the training data."""
