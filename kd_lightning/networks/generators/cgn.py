"""Counterfactual generative networks for digits: shape, texture and background as mechanisms of their own.

Sauer and Geiger, ICLR 2021, arXiv 2101.06046. An image is composed of what three mechanisms draw, each from latents
and a label of its own: x = m f + (1 - m) b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.counterfactual import HIGHEST, LOWEST, MECHANISMS, compose
from kd_lightning.networks.generators import tiny_gan
from kd_lightning.networks.generators.generators import UpConv


class Cgn(nn.Module):
    """The three mechanisms of CGN's MNIST variants; what a texture draws is not yet shifted (:func:`shifted`).

    The mask is an instance-normalised map that is cut off to [1e-4, 0.9999]: beyond that no gradient comes back,
    which is how masks become binary.

    Args:
        num_classes: of the labels.
        latent: length of z.
        embed: length of a label's embedding, which the mechanisms share and which is learned.
        ngf: half the channels behind the latents.
        channels: of a texture.
        size: side in pixels, a multiple of 4.
        init: ``orthogonal`` or ``normal``, of linear maps and convolutions; None leaves PyTorch's.
        gain: of the former, or the deviation of the latter and of the batch norms' weights.
        flat: a texture is one colour, its mean, so that it cannot paint a shape.
        behind: what the background's channels begin with, in (0, 1). Their batch norm spreads the classes around it,
            and where all are to become black from the middle of the range, some become white first.

    Raises:
        ValueError: a size that cannot be doubled to, or ``behind`` is no colour that tanh reaches.
    """

    mechanisms = MECHANISMS

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
        if size % 4:
            raise ValueError(f"size={size}: expected a multiple of 4, as the image is doubled twice")
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
        """What one mechanism draws of latents (N, latent) and labels (N,)."""
        net = {"shape": self.shape, "fg": self.fg, "bg": self.bg}[im]
        drawn = net(torch.cat([z, self.label_emb(y)], 1))
        if im == "shape":
            return drawn.clamp(LOWEST, HIGHEST)
        texture = (drawn + 1) / 2
        return texture.mean((2, 3), keepdim=True).expand_as(texture) if self.flat else texture

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] whose mechanisms have latents and label in common."""
        return compose(*(self.draw(im, z, y) for im in MECHANISMS))


class Together(nn.Module):
    """Three networks, each of which is one mechanism.

    Args:
        shape: latents (N, latent) and labels (N,) to images (N, C, H, W) in [0, 1], whose mean over channels is the
            mask; or a network with all mechanisms.
        fg: to textures of the object, likewise.
        bg: to textures of the background, likewise.
    """

    mechanisms = MECHANISMS

    def __init__(self, shape: nn.Module, fg: nn.Module, bg: nn.Module) -> None:
        super().__init__()
        self.shape, self.fg, self.bg = shape, fg, bg

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """What the network of one mechanism draws."""
        return drawn_by({"shape": self.shape, "fg": self.fg, "bg": self.bg}[im], im, z, y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] whose mechanisms have latents and label in common."""
        return compose(*(self.draw(im, z, y) for im in MECHANISMS))


def drawn_by(net: nn.Module, im: str, z: Tensor, y: Tensor) -> Tensor:
    """What ``net`` draws as mechanism ``im``: by its ``draw``, or as all it draws, at its ``reduced`` side."""
    if hasattr(net, "draw"):
        return cast(Any, net).draw(im, z, y)
    image = net(z, y)
    if side := getattr(net, "reduced", None):
        image = F.adaptive_avg_pool2d(image, side)
    return image.mean(1, keepdim=True).clamp(LOWEST, HIGHEST) if im == "shape" else image


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) moved in a circle, by 0 to H pixels each way, of which the first and last are the same.

    CGN lays four copies of a texture side by side and cuts one out anywhere, so that a texture is no place's own.
    """
    n, _, height, width = x.shape
    down = torch.randint(height + 1, (n, 1), generator=rng, device=rng.device).to(x.device)
    right = torch.randint(width + 1, (n, 1), generator=rng, device=rng.device).to(x.device)
    rows = (torch.arange(height, device=x.device) + down) % height
    columns = (torch.arange(width, device=x.device) + right) % width
    each = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class LinearDiscriminator(nn.Module):
    """Images (N, C, H, W) in [0, 1] and labels (N,) to verdicts (N,), by linear maps alone.

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: side in pixels.
        ndf: width.
        embed: length of a label's embedding.
    """

    def __init__(self, *, num_classes: int = 10, channels: int = 3, size: int = 32, ndf: int = 512, embed: int = 10):
        super().__init__()
        self.label_emb = nn.Embedding(num_classes, embed)
        self.net = nn.Sequential(
            nn.Linear(channels * size**2 + embed, ndf),
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
    """The same by convolutions, the label as a further channel.

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: side in pixels, at least 24.
        ndf: channels behind the first convolution.
    """

    def __init__(self, *, num_classes: int = 10, channels: int = 3, size: int = 32, ndf: int = 32) -> None:
        super().__init__()
        if size < 24:
            raise ValueError(f"size={size}: expected at least 24, or its four convolutions leave nothing")
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
    """TinyGAN's, for its verdicts alone: spectrally normalised convolutions, and the label asked of their sum.

    The label's vector times the image's: Miyato and Koyama, ICLR 2018.

    Args:
        num_classes: of the labels.
        channels: of an image.
        size: side in pixels, halved by every layer.
        ndf: channels behind the first layer, doubled by every further one.
        layers: how many.

    Raises:
        ValueError: an image is smaller than its layers can halve.
    """

    def __init__(
        self, *, num_classes: int = 10, channels: int = 3, size: int = 32, ndf: int = 16, layers: int = 4
    ) -> None:
        super().__init__()
        if size < 2**layers:
            raise ValueError(f"size={size}: expected at least {2**layers}, or layers={layers} leave nothing")
        self.net = tiny_gan.Discriminator(num_classes=num_classes, conv_dim=ndf, repeat=layers, channels=channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """One number for each image (N, C, H, W) in [0, 1] and label (N,)."""
        return self.net(x, y)[0]


def initialise(net: nn.Module, init: str | None, gain: float) -> None:
    """Weights of linear maps, convolutions and batch norms as CGN draws them; biases 0, embeddings as they are.

    Raises:
        ValueError: no such way.
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
