"""Counterfactual generative networks and their distillation."""
