"""Metrics beyond the task's own."""
