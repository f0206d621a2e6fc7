"""Generators of data-free distillation: latents to images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.errors import SizeError


class UpConv(nn.Conv2d):
    """Doubles height and width by repeating pixels, then a 3x3 convolution with zero padding.

    (N,in_channels,H,W) -> (N,out_channels,2H,2W). Parameters and state_dict are those of
    `nn.Conv2d(in_channels, out_channels, 3, padding=1)`.

    `fast=True` computes the same in one transposed convolution. Repeated pixels share kernel entries, so the
    nine products per output pixel of the plain form become four, borders included. It equals the plain form
    up to rounding.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, fast: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.fast = fast

    def forward(self, input: Tensor) -> Tensor:
        """Map of twice the height and width."""
        if not self.fast:
            return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))
        # An input pixel is repeated twice, and each copy reaches three output pixels: a kernel of 4x4.
        kernel = _overlap_add(_overlap_add(self.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class ConvGenerator(nn.Module):
    """Latent (N,latent) -> image (N,channels,H,W) in data units, not clamped.

    The generator of DAFL (Chen et al., ICCV 2019) and of its successors, which differ in the last layers:

    * `tail="tanh_bn"`: tanh, then BatchNorm without parameters. DAFL and RDSKD with `eps=0.8`, DFAD with
      `eps=1e-5`.
    * `tail="bn"`: BatchNorm with parameters, no tanh. ZSKT, with `eps=1e-5`.
    * `tail="sigmoid"`: the image itself. CMI and FastDFKD, with `eps=1e-5` and `conv_bias=False`.

    The first two make roughly standardised images, which their papers feed directly to the teacher; here they
    are returned as `u * std + mean`, because everywhere else images are in [0,1] and classifiers normalise
    them themselves.

    Args:
        latent: length of z.
        channels: channels of the image.
        size: height and width of the image, or one number for both; multiples of 4.
        ngf: channels of the last hidden map; the maps before it have twice as many.
        tail: see above.
        eps: of the two BatchNorms that follow the hidden convolutions. DAFL wrote `BatchNorm2d(128, 0.8)`,
            which sets eps and not the momentum; its learning rate relies on that. The first and the last
            BatchNorm keep 1e-5.
        conv_bias: bias of the two hidden convolutions; the last convolution always has one.
        mean: per channel, in data units; needed by tanh_bn and bn, not used by sigmoid.
        std: per channel, in data units.
        fast: see `UpConv`.

    Raises:
        ValueError: a height or width that is not a multiple of 4, an unknown tail, statistics that do not fit the
            channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        latent: int,
        channels: int,
        size: int | Sequence[int],
        ngf: int = 64,
        tail: Literal["tanh_bn", "bn", "sigmoid"] = "tanh_bn",
        eps: float = 0.8,
        conv_bias: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        fast: bool = True,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        if height < 4 or width < 4 or height % 4 or width % 4:
            raise SizeError(f"Generator doubles its map twice: size must be a multiple of 4, got {size}")
        self.latent = latent
        self.shape = (2 * ngf, height // 4, width // 4)
        self.project = nn.Linear(latent, 2 * ngf * (height // 4) * (width // 4))
        self.body = nn.Sequential(
            nn.BatchNorm2d(2 * ngf),
            UpConv(2 * ngf, 2 * ngf, bias=conv_bias, fast=fast),
            nn.BatchNorm2d(2 * ngf, eps=eps),
            nn.LeakyReLU(0.2),
            UpConv(2 * ngf, ngf, bias=conv_bias, fast=fast),
            nn.BatchNorm2d(ngf, eps=eps),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ngf, channels, 3, padding=1),
        )
        self.tail = _tail(tail, channels)
        self.standardised = tail != "sigmoid"
        if self.standardised:
            self.register_buffer("mean", _statistic("mean", mean, channels))
            self.register_buffer("std", _statistic("std", std, channels))

    def forward(self, z: Tensor) -> Tensor:
        """Images from latents z (N,latent), standard normal in all papers above."""
        return self.render(self.maps(z))

    def maps(self, z: Tensor) -> Tensor:
        """The first maps (N,2 ngf,H/4,W/4) of latents (N,latent), after their BatchNorm."""
        first: Tensor = self.body[0](self.project(z).unflatten(1, self.shape))
        return first

    def render(self, maps: Tensor) -> Tensor:
        """Images (N,channels,H,W) of first maps."""
        u: Tensor = self.tail(self.body[1:](maps))
        return u * self.std + self.mean if self.standardised else u


def _overlap_add(kernel: Tensor, dim: int) -> Tensor:
    """Three taps along `dim` of a convolution after repetition -> four taps of the transposed convolution."""
    a, b, c = kernel.unbind(dim)
    return torch.stack((c, b + c, a + b, a), dim)


def _tail(name: str, channels: int) -> nn.Module:
    if name == "tanh_bn":
        return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False))
    if name == "bn":
        return nn.BatchNorm2d(channels)
    if name == "sigmoid":
        return nn.Sigmoid()
    raise ValueError(f"unknown tail {name!r}: take tanh_bn, bn or sigmoid")


def _statistic(name: str, values: Sequence[float] | None, channels: int) -> Tensor:
    if values is None or len(values) != channels:
        raise ValueError(f"Generator needs one {name} per channel ({channels}) unless tail=sigmoid, got {values}")
    return torch.tensor([float(value) for value in values]).reshape(channels, 1, 1)
