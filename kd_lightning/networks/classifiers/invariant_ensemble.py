"""CGN's invariant classifier (Sauer and Geiger, ICLR 2021): a ResNet with heads for shape, texture and background.

With ResNet-50 and ImageNet's classes it has 29,655,032 parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import resnet

from kd_lightning.errors import TeacherError
from kd_lightning.networks.weights import read_weights, refuse_misfits

KINDS: dict[int, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    18: (resnet.BasicBlock, [2, 2, 2, 2]),
    34: (resnet.BasicBlock, [3, 4, 6, 3]),
    50: (resnet.Bottleneck, [3, 4, 6, 3]),
}


class Heads(NamedTuple):
    """Logits (N, K) of the three heads."""

    shape: Tensor
    texture: Tensor
    bg: Tensor

    @property
    def average(self) -> Tensor:
        """The ensemble's logits: the mean of the heads, (N, K)."""
        return (self.shape + self.texture + self.bg) / 3

    @property
    def shape_texture(self) -> Tensor:
        """The mean of the two heads for the object, (N, K)."""
        return (self.shape + self.texture) / 2


class InvariantEnsemble(nn.Module):
    """Images (N, in_channels, H, W), normalised -> logits (N, num_classes), the mean of the heads'.

    Parts have the names of the authors' checkpoints, whose prefix ``module.`` is removed when they are read.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        depth: of the ResNet: 18, 34 or 50, as for ImageNet.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, depth: int = 50) -> None:
        super().__init__()
        if depth not in KINDS:
            raise ValueError(f"the invariant ensemble is a ResNet of depth 18, 34 or 50, got {depth}")
        kind, blocks = KINDS[depth]
        net = resnet.ResNet(kind, blocks, num_classes=1)
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        features = net.fc.in_features
        self.m_shape, self.m_texture, self.m_bg = (
            nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes)) for _ in range(3)
        )

    def heads(self, x: Tensor) -> Heads:
        """Logits of each head, for normalised images."""
        features = self.backbone(x)
        return Heads(self.m_shape(features), self.m_texture(features), self.m_bg(features))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        return self.heads(x).average


def load_backbone(net: InvariantEnsemble, path: str | Path) -> None:
    """Load the weights of torchvision's ResNet of that depth into the backbone, without its last layer.

    Raises:
        TeacherError: there is no such file, or it holds another network.
    """
    if not Path(path).expanduser().is_file():
        raise TeacherError(f"backbone: there is no file {path}. Give torchvision's weights of a ResNet, or null")
    found = {k: v for k, v in read_weights(path).items() if not k.startswith("fc.")}
    layers = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
    ours = {f"{layers[int(number)]}.{rest}": name for name in net.backbone.state_dict()
            for number, _, rest in [name.partition(".")]}  # fmt: skip
    refuse_misfits(found, {k: net.backbone.state_dict()[name] for k, name in ours.items()}, path, into="the backbone")
    net.backbone.load_state_dict({name: found[k] for k, name in ours.items()})
