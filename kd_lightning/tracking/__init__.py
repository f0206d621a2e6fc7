"""Curves, dashboards and pictures."""
