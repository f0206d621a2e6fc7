"""Ranks, collectives, devices and GPU slots."""
