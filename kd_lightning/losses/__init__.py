"""Losses: pure functions and small modules from tensors to a scalar, computed in fp32."""
