"""Colours of classes in pictures and label maps."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

VOID_COLOUR = (255, 255, 255)


def colours(num_classes: int) -> Tensor:
    """A colour for each class, uint8 (C, 3): neighbouring classes differ in hue, and hues repeat lighter and darker."""
    found = []
    for i in range(num_classes):
        hue = (0.58 + i * 0.6180339887) % 1  # the golden ratio keeps any number of hues apart
        light, strong = (0.5, 0.85) if i % 3 == 0 else (0.36, 0.75) if i % 3 == 1 else (0.68, 0.8)
        found.append([round(255 * v) for v in colorsys.hls_to_rgb(hue, light, strong)])
    return torch.tensor(found, dtype=torch.uint8)


def coloured(masks: Tensor, num_classes: int) -> Tensor:
    """Label maps (..., H, W) as colours, uint8 (..., 3, H, W); values that are no class get ``VOID_COLOUR``."""
    table = torch.full((256, 3), 0, dtype=torch.uint8)
    table[:] = torch.tensor(VOID_COLOUR, dtype=torch.uint8)
    table[:num_classes] = colours(num_classes)
    return table[masks.long()].movedim(-1, -3)
