"""Features of VGG-16 (Simonyan and Zisserman, ICLR 2015) for CGN's Gram losses.

Deviations (paper / CGN's code / here):
    * Input: ImageNet's mean and deviation / images in [-1, 1] as they are / CGN's.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.errors import TeacherError
from kd_lightning.networks.generators.gan_blocks import from_pixels
from kd_lightning.networks.weights import read_weights, refuse_misfits

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Widths of the convolutions before each pooling."""
LAST = 22
"""Index of the last layer."""


class Vgg16(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> four maps of 64, 128, 256 and 512 channels, of H, H/2, H/4 and H/8 rows.

    They are the maps before each pooling except the last: relu1_2, relu2_2, relu3_3, relu4_3. Layers have the names of
    torchvision's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs, self.taps = 3, set[int]()
        for block in BLOCKS:
            if self.taps:
                self.features.append(nn.MaxPool2d(2))
            for width in block:
                self.features.extend([nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()])
                inputs = width
            self.taps.add(len(self.features) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, the largest first."""
        maps, h = [], from_pixels(x)
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.taps:
                maps.append(h)
        return maps


def trained(weights: str | Path | None) -> Vgg16 | None:
    """The network with weights from torchvision's ``vgg16-397923af.pth`` or a similar file; None for no file.

    Raises:
        TeacherError: there is no such file, or it holds another network.
    """
    if weights is None:
        return None
    if not Path(weights).expanduser().is_file():
        raise TeacherError(f"VGG-16: there is no file {weights}. Give torchvision's vgg16-397923af.pth, or null")
    with torch.device("meta"):
        net = Vgg16()
    wanted = net.state_dict()
    # ignore the layers after the last map
    found = {k: v for k, v in read_weights(weights).items() if k in wanted or not _behind(k)}
    refuse_misfits(found, wanted, weights, into="VGG-16")
    net.load_state_dict(found, assign=True)
    return net


def _behind(name: str) -> bool:
    layer = re.match(r"features\.(\d+)\.", name)
    return name.startswith("classifier.") or (layer is not None and int(layer[1]) > LAST)
