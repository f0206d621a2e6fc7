"""Measures beyond the task's own."""
