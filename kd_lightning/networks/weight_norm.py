"""Weight norm and Gaussian noise, of which the classifiers and discriminators of few labels are made."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class GaussianNoise(nn.Module):
    """Adds noise of this standard deviation in training mode.

    Args:
        std: its standard deviation; 0 for none.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return x + self.std * torch.randn_like(x) if self.training and self.std else x

    def extra_repr(self) -> str:
        """The standard deviation."""
        return f"std={self.std}"


def weight_normed(layer: Layer, *, gain: float = 2**0.5, on: bool = True) -> Layer:
    """A layer with weight norm (Salimans and Kingma, NeurIPS 2016) and weights that keep the size of its input.

    It has no statistics of a batch, so images that pass in batches of their own stay comparable. Deviation: the
    authors set lengths and biases from a first batch; here every output's weights begin as for ReLU (He et al., 2015).

    Args:
        layer: linear or convolution; it is changed in place.
        gain: of the first weights; about 1 before a layer without ReLU.
        on: False sets the first weights only.
    """
    nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(gain / 2**0.5)
        if layer.bias is not None:
            layer.bias.zero_()
    if not on:
        return layer
    return cast(Layer, weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0))
