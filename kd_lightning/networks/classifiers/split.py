"""A network for split computing (Matsubara et al., HND 2019, GHND 2020): a device encodes, a server answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from kd_lightning.networks.places import spread

RANGE = 8
"""Bytes that tell the least and the largest value of an image's code."""


class Split(nn.Module):
    """A network whose first layers are replaced by an encoder of few values and a decoder.

    (N, C, H, W) -> (N, num_classes). In eval mode the code goes through 8 bits, each image with its own range, as it
    would be sent.

    Args:
        net: the network; modules that are finished when ``upto`` is are replaced.
        upto: path of the last module that is replaced, such as ``layer1``, or a place such as ``@blocks.0``.
        image: (C, H, W) of the images.
        channels: of the code.
        stride: the code's maps are this much smaller than those at ``upto``.
    """

    def __init__(self, *, net: nn.Module, upto: str, image: Sequence[int], channels: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.taps: dict[str, list[str]] = net.places() if hasattr(net, "places") else {}  # type: ignore[operator]
        first, shape = _finished(net, spread(net, upto), image)
        for path in first:
            net.set_submodule(path, nn.Identity())
        outputs, *self.size = shape
        down = max(1, image[1] // self.size[0])
        self.encoder = nn.Sequential(
            *_convolved(image[0], outputs, down), nn.ReLU(), nn.Conv2d(outputs, channels, 3, stride, padding=1)
        )
        self.decoder = nn.Sequential(
            *_convolved(channels, outputs, 1),
            nn.ReLU(),
            nn.Upsample(tuple(self.size)),
            *_convolved(outputs, outputs, 1),
        )
        self.net = net
        with torch.no_grad():
            self.code = tuple(self.encoder.eval()(torch.zeros(1, *image)).shape[1:])
        self.encoder.train()

    @property
    def bytes_an_image(self) -> int:
        """What a device sends of an image."""
        return prod(self.code) + RANGE

    def places(self) -> dict[str, list[str]]:
        """The network's own places; what an encoder and a decoder replace is the decoder's output."""
        return {name: [f"net.{path}" for path in paths] for name, paths in self.taps.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        code = self.encoder(x)
        logits: Tensor = self.net(self.decoder(code if self.training else through_8_bits(code)))
        return logits


def through_8_bits(code: Tensor) -> Tensor:
    """A code (N, C, H, W) as it arrives: each image's values in 256 steps from its least to its largest."""
    low, high = code.amin((1, 2, 3), keepdim=True), code.amax((1, 2, 3), keepdim=True)
    step = ((high - low) / 255).clamp(min=torch.finfo(code.dtype).tiny)
    return low + step * ((code - low) / step).round()


def _finished(net: nn.Module, upto: str, image: Sequence[int]) -> tuple[list[str], tuple[int, ...]]:
    """The largest modules that have run when ``upto`` has, and the shape that it returns.

    Raises:
        ValueError: there is no such module, or it is not run.
    """
    modules = dict(net.named_modules())
    if upto not in modules or not upto:
        raise ValueError(f"upto={upto}: {type(net).__name__} has {', '.join(filter(None, modules))}")
    done, shape = list[str](), list[tuple[int, ...]]()

    def finish(path: str, output: Tensor) -> None:
        if not shape:
            done.append(path)
        if path == upto:
            shape.append(tuple(output.shape[1:]))

    handles = [
        module.register_forward_hook(lambda _module, _args, output, path=path: finish(path, output))
        for path, module in modules.items()
        if path
    ]
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, *image))
    net.train(training)
    for handle in handles:
        handle.remove()
    if not shape:
        raise ValueError(f"upto={upto}: this module of {type(net).__name__} is not run")
    return [path for path in done if path.rpartition(".")[0] not in done], shape[0]


def _convolved(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution and batch norm."""
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]
