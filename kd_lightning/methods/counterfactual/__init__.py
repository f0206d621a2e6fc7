"""Counterfactual generators, and their distillation."""
