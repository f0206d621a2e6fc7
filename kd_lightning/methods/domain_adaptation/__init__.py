"""Adaptation to a domain without labels, and distillation while it goes on."""
