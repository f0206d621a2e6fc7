"""Generators: latents (N,Z) to images (N,C,H,W)."""
