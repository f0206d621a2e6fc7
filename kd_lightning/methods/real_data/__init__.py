"""Distillation on real images."""
