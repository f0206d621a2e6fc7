"""Ranks, devices and GPU slots."""
