"""A network's outputs on a whole set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def predict(
    net: nn.Module | Callable[[Tensor], Tensor], images: Tensor, *, batch_size: int = 500, device: str = "cpu"
) -> Tensor:
    """Outputs (N, ...) in fp32 on the CPU, for uint8 images (N, C, H, W).

    A module runs in eval mode and is put back into its earlier mode.
    """
    if not isinstance(net, nn.Module):
        return torch.cat([net(chunk.to(device).float() / 255).float().cpu() for chunk in images.split(batch_size)])
    training = net.training
    net.eval().to(device)
    try:
        return torch.cat([net(chunk.to(device).float() / 255).float().cpu() for chunk in images.split(batch_size)])
    finally:
        net.train(training)
