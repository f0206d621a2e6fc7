"""Parts of the generators and discriminators of conditional GANs: spectral norm, residual blocks, attention.

Spectral norm is PyTorch's parametrization: one power iteration per forward pass in training mode, none in eval mode,
with its two vectors as buffers. Weights are initialised before it is added, so that its vectors fit the initial
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from kd_lightning.core.sides import Size, halved, one_side, sides
from kd_lightning.errors import SizeError

Init = Callable[[Tensor], Any]
INITS: dict[str, Init] = {
    "normal": partial(nn.init.normal_, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
}
"""Initialisations: BigGAN's on CIFAR, BigGAN's on ImageNet, and SAGAN's."""


class Layers:
    """Builds convolutions, linear layers and embeddings with spectral norm and a common initialisation.

    Args:
        init: of the weights: ``normal`` of deviation 0.02, ``orthogonal`` or ``xavier``.
        zero_bias: initialise biases to 0 instead of PyTorch's values.
        eps: smallest norm by which a power iteration divides.
    """

    def __init__(
        self, init: Literal["normal", "orthogonal", "xavier"], *, zero_bias: bool = False, eps: float = 1e-12
    ) -> None:
        self.init, self.zero_bias, self.eps = INITS[init], zero_bias, eps

    def conv(self, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True) -> nn.Module:
        """A convolution that keeps height and width."""
        return self._normed(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
        """A linear layer."""
        return self._normed(nn.Linear(inputs, outputs, bias=bias))

    def embedding(self, classes: int, outputs: int) -> nn.Module:
        """A vector for each class."""
        return self._normed(nn.Embedding(classes, outputs))

    def plain(self, layer: nn.Module) -> nn.Module:
        """``layer`` with the same initialisation, without spectral norm."""
        self.init(layer.weight)  # type: ignore[arg-type]
        if self.zero_bias and getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return layer

    def _normed(self, layer: nn.Module) -> nn.Module:
        return spectral_norm(self.plain(layer), eps=self.eps)


class ConditionalBatchNorm(nn.Module):
    """BatchNorm whose gain and bias depend on a condition c: (1 + gain(c)) BN(x) + bias(c).

    Args:
        channels: of the map.
        make: builds, from a number of channels, a module from conditions (N, ...) to (N, channels).
        momentum: of the running statistics.
    """

    def __init__(self, channels: int, make: Callable[[int], nn.Module], *, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, momentum=momentum)
        self.gain, self.bias = make(channels), make(channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise maps x (N, channels, H, W), with one condition per map."""
        gain, bias = self.gain(condition), self.bias(condition)
        return torch.addcmul(bias[..., None, None], self.norm(x), 1 + gain[..., None, None])


class UpBlock(nn.Module):
    """Residual block that doubles height and width: (N, inputs, H, W) -> (N, outputs, 2H, 2W).

    Args:
        inputs: channels.
        outputs: channels.
        layers: makes the convolutions.
        norm: builds, from a number of channels, a module called with a map and a condition.
    """

    def __init__(self, inputs: int, outputs: int, *, layers: Layers, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1, self.conv2 = layers.conv(inputs, outputs), layers.conv(outputs, outputs)
        self.skip = layers.conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The enlarged map (N, outputs, 2H, 2W)."""
        h = self.conv1(doubled(F.relu(self.norm1(x, condition))))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        return h + doubled(self.skip(x))  # a 1x1 convolution commutes with repeating pixels


class BottleneckUpBlock(nn.Module):
    """Residual block through a quarter of the channels: (N, inputs, H, W) -> (N, outputs, H, W), or twice as high.

    Its skip has no weights of its own: it drops channels.

    Args:
        inputs: channels.
        outputs: channels, at most as many.
        layers: makes the convolutions.
        norm: channels -> a module called with a map and whatever the block is called with beside it.
        double: height and width.
    """

    def __init__(
        self, inputs: int, outputs: int, *, layers: Layers, norm: Callable[[int], nn.Module], double: bool
    ) -> None:
        super().__init__()
        self.outputs, self.doubles = outputs, double
        inside = max(1, inputs // 4)
        self.norms = nn.ModuleList(norm(width) for width in (inputs, inside, inside, inside))
        widths = ((inputs, inside, 1), (inside, inside, 3), (inside, inside, 3), (inside, outputs, 1))
        self.convs = nn.ModuleList(layers.conv(*each) for each in widths)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """The map, and what its norms follow."""
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.relu(norm(h, *condition))
            h = conv(doubled(h) if self.doubles and i == 1 else h)
        skip = x[:, : self.outputs]
        return h + (doubled(skip) if self.doubles else skip)


class DownBlock(nn.Module):
    """Residual block of a discriminator: (N, inputs, H, W) -> (N, outputs, H, W), or half of both by averaging.

    Args:
        inputs: channels.
        outputs: channels.
        layers: makes the convolutions.
        halve: average 2x2 pixels at the end.
        first: the input is an image, so no ReLU precedes the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, layers: Layers, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1, self.conv2 = layers.conv(inputs, outputs), layers.conv(outputs, outputs)
        self.skip = layers.conv(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The map (N, outputs, H, W), or half of both."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)  # averaging commutes with the 1x1 convolution
        return h + self.skip(x)


class SelfAttention(nn.Module):
    """Attention of every position to a pooled map: x + scale * attention(x); ``scale`` is learned and starts at 0.

    Zhang et al., *Self-Attention Generative Adversarial Networks* (ICML 2019).

    Args:
        channels: of the map, a multiple of 8.
        layers: makes the 1x1 convolutions.
        bias: whether they have one: SAGAN's do, BigGAN's do not.
    """

    def __init__(self, channels: int, *, layers: Layers, bias: bool) -> None:
        super().__init__()
        self.query = layers.conv(channels, channels // 8, 1, bias=bias)
        self.key = layers.conv(channels, channels // 8, 1, bias=bias)
        self.value = layers.conv(channels, channels // 2, 1, bias=bias)
        self.out = layers.conv(channels // 2, channels, 1, bias=bias)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, H, W) of even height and width."""
        query = self.query(x).flatten(2).transpose(1, 2)
        key = F.max_pool2d(self.key(x), 2).flatten(2).transpose(1, 2)
        value = F.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.scale * self.out(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


def grown_from(smallest: int, size: Size, *, of: str) -> tuple[int, tuple[int, int]]:
    """How often to double a map to reach ``size``, and its height and width, of which the shorter is ``smallest``.

    Raises:
        SizeError: no map becomes as large.
    """
    times = doublings(min(sides(size)), smallest, of=of)
    return times, halved(size, times, of=of)


def doublings(size: Size, smallest: int, *, of: str) -> int:
    """How often to double ``smallest`` to reach ``size``.

    Raises:
        SizeError: ``size`` is not ``smallest`` times a power of 2, or no square.
    """
    size = one_side(size, of=of)
    times = (size // smallest).bit_length() - 1
    if smallest << max(times, 0) != size:
        raise SizeError(f"{of}: size must be {smallest} times a power of 2, got {size}")
    return times


def widths_of(widths: int | Sequence[int], number: int, *, of: str) -> list[int]:
    """One width for each of ``number`` maps.

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(widths, int):
        return [widths] * number
    if len(widths) != number:
        raise ValueError(f"{of} has {number} maps at this size: give one width or {number}, got {list(widths)}")
    return list(widths)


def verdict(h: Tensor, linear: nn.Module, embedded: Tensor) -> Tensor:
    """What a projection discriminator says (N,) of features h (N, D): w h, and the part of the label e, <e, h>."""
    return linear(h).squeeze(1) + (embedded * h).sum(1)


def doubled(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) of twice the height and width, every pixel repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def to_pixels(x: Tensor) -> Tensor:
    """Convert [-1, 1], the range of tanh and of both papers, to data units [0, 1]."""
    return (x + 1) / 2


def from_pixels(x: Tensor) -> Tensor:
    """Convert data units [0, 1] to [-1, 1]."""
    return 2 * x - 1
