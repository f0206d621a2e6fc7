"""Counterfactual generative networks for digits: separate mechanisms for shape, texture and background.

Sauer and Geiger, ICLR 2021, arXiv 2101.06046. Three mechanisms, each with its own latents and label, draw a mask m, a
foreground f and a background b; the image is x = m f + (1 - m) b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.core.sides import Size, one_side, sides
from kd_lightning.errors import SizeError
from kd_lightning.losses.counterfactual import HIGHEST, LOWEST, MECHANISMS, compose
from kd_lightning.networks.generators import tiny_gan
from kd_lightning.networks.generators.generators import UpConv
from kd_lightning.networks.pretrained import cgn_mnist_names


class CgnGenerator(nn.Module):
    """The three mechanisms of CGN's MNIST variants; textures are not shifted yet (:func:`shifted`).

    The mask is an instance-normalised map clamped to [1e-4, 0.9999]: values beyond get no gradient, so that masks
    become binary.

    Args:
        num_classes: of the labels.
        latent: length of z.
        embed: length of a label's embedding, which is learned and shared by the mechanisms.
        ngf: half the channels of the first map.
        channels: of a texture.
        size: side in pixels, a multiple of 4.
        init: ``orthogonal`` or ``normal``, of linear maps and convolutions; None leaves PyTorch's.
        gain: of ``orthogonal``, or the deviation of ``normal`` and of the batch norms' weights.
        flat: replace a texture by its mean colour, so that it cannot show a shape.
        behind: initial level of the background's channels, in (0, 1). Their batch norm spreads the classes around it:
            from 0.5, some classes of a black background would first become white.

    Raises:
        ValueError: ``size`` is no multiple of 4, or ``behind`` is not in (0, 1).
    """

    mechanisms = MECHANISMS

    @property
    def published(self) -> dict[str, str]:
        """Names in the authors' file, and what stands for each here."""
        return {theirs: ours for ours, theirs in cgn_mnist_names(self).items()}

    def __init__(
        self,
        *,
        num_classes: int = 10,
        latent: int = 32,
        embed: int = 10,
        ngf: int = 32,
        channels: int = 3,
        size: int = 32,
        init: Literal["orthogonal", "normal"] | None = "orthogonal",
        gain: float = 0.2,
        flat: bool = False,
        behind: float = 0.5,
    ) -> None:
        super().__init__()
        size = one_side(size, of="a CGN")
        if size % 4:
            raise SizeError(f"size={size}: expected a multiple of 4, as the image is doubled twice")
        if not 0 < behind < 1:
            raise ValueError(f"behind={behind}: expected a level between 0 and 1, such as 0.02 for black")
        self.flat = flat
        self.latent, self.num_classes = latent, num_classes
        self.label_emb = nn.Embedding(num_classes, embed)
        wide, narrow, inputs = 2 * ngf, ngf, latent + embed
        self.shape = nn.Sequential(
            *_seed(inputs, wide, size // 4),
            nn.InstanceNorm2d(wide),
            *_doubled(wide, narrow),
            nn.InstanceNorm2d(narrow),
            *_doubled(narrow, 1),
            nn.InstanceNorm2d(1),
        )
        self.fg, self.bg = (
            nn.Sequential(
                *_seed(inputs, wide, size // 4),
                *_doubled(wide, wide),
                *_doubled(wide, narrow),
                nn.Conv2d(narrow, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.Tanh(),
            )
            for _ in range(2)
        )
        initialise(self, init, gain)
        nn.init.constant_(cast(Tensor, self.bg[-2].bias), math.atanh(2 * behind - 1))

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """The mask (N, 1, H, W) or texture (N, C, H, W) of mechanism ``im`` for latents (N, latent), labels (N,)."""
        net = {"shape": self.shape, "fg": self.fg, "bg": self.bg}[im]
        drawn = net(torch.cat([z, self.label_emb(y)], 1))
        if im == "shape":
            return drawn.clamp(LOWEST, HIGHEST)
        texture = (drawn + 1) / 2
        return texture.mean((2, 3), keepdim=True).expand_as(texture) if self.flat else texture

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] whose mechanisms share latents and label."""
        return compose(*(self.draw(im, z, y) for im in MECHANISMS))


class Together(nn.Module):
    """Three networks, one for each mechanism.

    Args:
        shape: latents (N, latent) and labels (N,) to images (N, C, H, W) in [0, 1], whose mean over channels is the
            mask; or a network with all mechanisms.
        fg: the same, to textures of the object.
        bg: the same, to textures of the background.
    """

    mechanisms = MECHANISMS

    def __init__(self, shape: nn.Module, fg: nn.Module, bg: nn.Module) -> None:
        super().__init__()
        self.shape, self.fg, self.bg = shape, fg, bg

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """The mask or texture of mechanism ``im``, from its network."""
        return drawn_by({"shape": self.shape, "fg": self.fg, "bg": self.bg}[im], im, z, y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] whose mechanisms share latents and label."""
        return compose(*(self.draw(im, z, y) for im in MECHANISMS))


def drawn_by(net: nn.Module, im: str, z: Tensor, y: Tensor) -> Tensor:
    """The mask or texture ``im`` of ``net``: from its ``draw``; without one, its output at side ``reduced``."""
    if hasattr(net, "draw"):
        return cast(Any, net).draw(im, z, y)
    image = net(z, y)
    if side := getattr(net, "reduced", None):
        image = F.adaptive_avg_pool2d(image, side)
    return image.mean(1, keepdim=True).clamp(LOWEST, HIGHEST) if im == "shape" else image


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) shifted cyclically by 0 to H pixels in each direction; 0 and H are the same.

    CGN tiles four copies of a texture and crops one at random, so that a texture does not depend on the position.
    """
    n, _, height, width = x.shape
    down = torch.randint(height + 1, (n, 1), generator=rng, device=rng.device).to(x.device)
    right = torch.randint(width + 1, (n, 1), generator=rng, device=rng.device).to(x.device)
    rows = (torch.arange(height, device=x.device) + down) % height
    columns = (torch.arange(width, device=x.device) + right) % width
    each = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class LinearDiscriminator(nn.Module):
    """Images (N, C, H, W) in [0, 1] and labels (N,) to scores (N,), by linear layers only.

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: height and width, or one number for both.
        ndf: width.
        embed: length of a label's embedding.
    """

    def __init__(self, *, num_classes: int = 10, channels: int = 3, size: Size = 32, ndf: int = 512, embed: int = 10):
        super().__init__()
        self.label_emb = nn.Embedding(num_classes, embed)
        self.net = nn.Sequential(
            nn.Linear(channels * math.prod(sides(size)) + embed, ndf),
            nn.LeakyReLU(0.2),
            nn.Linear(ndf, ndf),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(ndf, ndf),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(ndf, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """One number for each image; real ones are trained towards 1."""
        return self.net(torch.cat([(2 * x - 1).flatten(1), self.label_emb(y)], 1)).squeeze(1)


class ConvDiscriminator(nn.Module):
    """Images (N, C, H, W) in [0, 1] and labels (N,) to scores (N,), by convolutions, with the label as a channel.

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: height and width, or one number for both, at least 24.
        ndf: channels after the first convolution.
    """

    def __init__(self, *, num_classes: int = 10, channels: int = 3, size: Size = 32, ndf: int = 32) -> None:
        super().__init__()
        if min(sides(size)) < 24:
            raise SizeError(f"size={size}: expected at least 24, or its four convolutions leave nothing")
        self.label_emb = nn.Embedding(num_classes, 1)
        layers: list[nn.Module] = []
        for before, after, kernel, stride in (
            (channels + 1, ndf, 3, 1),
            (ndf, 2 * ndf, 3, 1),
            (2 * ndf, 4 * ndf, 4, 2),
            (4 * ndf, 4 * ndf, 4, 2),
        ):
            layers += [nn.Conv2d(before, after, kernel, stride, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.AvgPool2d(3), nn.Conv2d(4 * ndf, 1, 1, bias=False))
        initialise(self, "normal", 0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """One number for each image (N, C, 32, 32)."""
        label = self.label_emb(y)[..., None, None].expand(-1, 1, *x.shape[2:])
        return self.net(torch.cat([2 * x - 1, label], 1)).mean((1, 2, 3))


class ProjectionDiscriminator(nn.Module):
    """TinyGAN's discriminator without its inner maps: convolutions with spectral norm, and a projection of the label.

    The projection is the product of the label's vector and the image's (Miyato and Koyama, ICLR 2018).

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: height and width, or one number for both, halved by every layer.
        ndf: channels after the first layer, doubled by every further one.
        layers: number of layers.

    Raises:
        ValueError: ``size`` is less than 2 ** ``layers``.
    """

    def __init__(
        self, *, num_classes: int = 10, channels: int = 3, size: Size = 32, ndf: int = 16, layers: int = 4
    ) -> None:
        super().__init__()
        if min(sides(size)) < 2**layers:
            raise SizeError(f"size={size}: expected at least {2**layers}, or layers={layers} leave nothing")
        self.net = tiny_gan.TinyDiscriminator(num_classes=num_classes, conv_dim=ndf, repeat=layers, channels=channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """One number for each image (N, C, H, W) in [0, 1] and label (N,)."""
        return self.net(x, y)[0]


def initialise(net: nn.Module, init: str | None, gain: float) -> None:
    """Initialise linear layers, convolutions and batch norms as CGN does, biases to 0; leave embeddings as they are.

    Raises:
        ValueError: an unknown ``init``.
    """
    if init is None:
        return
    ways: Mapping[str, object] = {"orthogonal": nn.init.orthogonal_, "normal": lambda w, g: nn.init.normal_(w, 0.0, g)}
    if init not in ways:
        raise ValueError(f"init={init}: expected orthogonal, normal or null")
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            ways[init](module.weight, gain)  # type: ignore[operator]
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, gain)
            nn.init.zeros_(module.bias)


def _seed(inputs: int, wide: int, size: int) -> list[nn.Module]:
    return [nn.Linear(inputs, wide * size**2), nn.Unflatten(1, (wide, size, size))]


def _doubled(before: int, after: int) -> list[nn.Module]:
    return [UpConv(before, after, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
