"""A network's outputs on a whole set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_lightning.core.mapped import let_go

BATCH = 500
"""Most images of a batch."""
PIXELS, MAP_PIXELS = 1 << 21, 1 << 19
"""Most pixels of a batch, and of one whose outputs are maps: 500 images of 64 pixels, 41 of 224."""


def at_once(images: Tensor, *, maps: bool = False) -> int:
    """The number of images (N, C, H, W) in a batch, so that a network's features of it do not fill the memory."""
    most = MAP_PIXELS if maps else PIXELS
    return max(1, min(BATCH, most // (images.shape[-2] * images.shape[-1])))


@torch.no_grad()
def predict(
    net: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    keep: Callable[[Tensor], Tensor] | None = None,
    device: str = "cpu",
) -> Tensor:
    """Outputs (N, ...) in fp32 on the CPU, for uint8 images (N, C, H, W).

    A module runs in eval mode and is put back into its earlier mode.

    Args:
        net: the network.
        images: uint8 (N, C, H, W).
        keep: maps a batch of outputs to what is returned of it, such as masks; the memory that is needed besides does
            then not grow with N. None returns the outputs themselves.
        device: where the network runs.
    """

    def outputs() -> Tensor:
        batches = images.split(at_once(images, maps=keep is not None))
        found = []
        for batch in batches:
            output = net(batch.to(device).float() / 255).float()
            found.append((keep(output) if keep else output).cpu())
            let_go(batch)
        return torch.cat(found)

    if not isinstance(net, nn.Module):
        return outputs()
    training = net.training
    net.eval().to(device)
    try:
        return outputs()
    finally:
        net.train(training)
