"""Small encoders and decoders of a conditional variational autoencoder: FS-BBT's (Nguyen et al., ECCV 2022).

An encoder maps images (N,C,H,W) in [0,1] and labels (N,) int64 to mean and log-variance of z, both (N,latent). A
decoder maps latents (N,latent) and labels to the logits of pixels, and `forward` to the pixels themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.core.sides import Size, halved, sides


class Encoder(nn.Module, ABC):
    """Features of image and label (N,width), then two linear layers for mean and log-variance."""

    def __init__(self, width: int, *, latent: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mean, self.logvar = nn.Linear(width, latent), nn.Linear(width, latent)

    @abstractmethod
    def features(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Features (N,width) of images and one-hot labels (N,num_classes)."""

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x,y)."""
        h = self.features(x, F.one_hot(label, self.num_classes).float())
        return self.mean(h), self.logvar(h)


class Decoder(nn.Module):
    """A body from latent and one-hot label (N,latent+num_classes) to logits of pixels."""

    def __init__(self, body: nn.Module, *, latent: int, num_classes: int) -> None:
        super().__init__()
        self.latent, self.num_classes = latent, num_classes
        self.body = body

    def logits(self, z: Tensor, label: Tensor) -> Tensor:
        """Logits of the pixels, (N,C,H,W)."""
        return self.body(torch.cat([z, F.one_hot(label, self.num_classes).to(z)], 1))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Images (N,C,H,W) in [0,1]."""
        return self.logits(z, label).sigmoid()


class MlpEncoder(Encoder):
    """Linear layers on pixels and label; FS-BBT's for 28x28 by default.

    Args:
        size: height and width of the image, or one number for both.
        channels: of the image.
        widths: of the hidden layers; the decoder has them in reverse order.
        latent: length of z.
        num_classes: K.
    """

    def __init__(
        self,
        *,
        size: Size,
        channels: int = 1,
        widths: Sequence[int] = (256, 128, 64),
        latent: int = 2,
        num_classes: int = 10,
    ) -> None:
        super().__init__(widths[-1], latent=latent, num_classes=num_classes)
        self.body = _linears(channels * prod(sides(size)) + self.num_classes, widths)

    def features(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Features (N,widths[-1]) of images and one-hot labels."""
        return self.body(torch.cat([x.flatten(1), onehot], 1))


class MlpDecoder(Decoder):
    """The mirror of :class:`MlpEncoder`, with the same arguments."""

    def __init__(
        self,
        *,
        size: Size,
        channels: int = 1,
        widths: Sequence[int] = (256, 128, 64),
        latent: int = 2,
        num_classes: int = 10,
    ) -> None:
        hidden = _linears(latent + num_classes, widths[::-1])
        shape = channels, *sides(size)
        body = nn.Sequential(hidden, nn.Linear(widths[0], prod(shape)), nn.Unflatten(1, shape))
        super().__init__(body, latent=latent, num_classes=num_classes)


class ConvEncoder(Encoder):
    """4x4 convolutions of stride 2 on image and label; a linear layer turns the label into a further channel.

    Args:
        size: height and width of the image, or one number for both, multiples of 2 ** len(widths).
        channels: of the image.
        widths: of the convolutions, each halving the map.
        hidden: widths of the linear layers after them.
        latent: length of z.
        num_classes: K.
    """

    def __init__(
        self,
        *,
        size: Size,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        hidden: Sequence[int] = (32, 16),
        latent: int = 2,
        num_classes: int = 10,
    ) -> None:
        super().__init__(hidden[-1], latent=latent, num_classes=num_classes)
        smallest = halved(size, len(widths), of="ConvEncoder")
        shape = 1, *sides(size)
        self.paint = nn.Sequential(nn.Linear(self.num_classes, prod(shape)), nn.Unflatten(1, shape))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels + 1, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), _linears(widths[-1] * prod(smallest), hidden))

    def features(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Features (N,hidden[-1]) of images and one-hot labels."""
        return self.body(torch.cat([x, self.paint(onehot)], 1))


class ConvDecoder(Decoder):
    """Linear layers, then 4x4 transposed convolutions of stride 2 up to the image's size; arguments of `ConvEncoder`.

    Deviation: the authors' decoder has one step more, to 64x64 for images of 32x32, and a linear layer of 37.75 million
    weights back to 32x32; here the last transposed convolution gives the pixels.
    """

    def __init__(
        self,
        *,
        size: Size,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        hidden: Sequence[int] = (32, 16),
        latent: int = 2,
        num_classes: int = 10,
    ) -> None:
        smallest = halved(size, len(widths), of="ConvDecoder")
        first = nn.Linear(hidden[0], widths[-1] * prod(smallest))
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[::-1], (*widths[-2::-1], channels), strict=True):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        body = nn.Sequential(
            _linears(latent + num_classes, hidden[::-1]),
            first,
            nn.Unflatten(1, (widths[-1], *smallest)),
            *layers[:-1],
        )
        super().__init__(body, latent=latent, num_classes=num_classes)


def _linears(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)
