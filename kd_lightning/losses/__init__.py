"""Losses: pure functions and small modules on tensors, a scalar out, computed in fp32."""
