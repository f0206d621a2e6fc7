"""Classifiers: images (N,C,H,W) to logits (N,K)."""
