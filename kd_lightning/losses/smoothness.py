"""How rough or large the pixels of an image are."""

from typing import Literal

import torch
from torch import Tensor


def total_variation(x: Tensor, *, norm: Literal["l2", "l1"] = "l2") -> Tensor:
    """Total variation of x (N,C,H,W), differences of neighbours in four directions: DeepInversion's R_TV.

    "l2" adds four Frobenius norms over the whole batch, as the authors' code does, so it grows with the square
    root of N; "l1" adds four means of absolute differences.
    """
    x = x.float()
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    if norm == "l2":
        return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()
    if norm == "l1":
        return torch.stack([d.abs().mean() for d in differences]).sum()
    raise ValueError(f"unknown norm {norm!r}: take l2 or l1")


def l2_norm(x: Tensor) -> Tensor:
    """Frobenius norm of the whole batch x: DeepInversion's R_l2 (CIFAR code)."""
    return torch.linalg.vector_norm(x.float())  # gradient 0 at 0, where the root of a sum has NaN
