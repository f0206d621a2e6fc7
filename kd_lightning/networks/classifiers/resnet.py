"""Residual networks (He et al., CVPR 2016): thin ones for CIFAR, and ResNet-18/34/50 with a stem for 32x32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet as torchvision_resnet

from kd_lightning.networks.classifiers.stem import Stem, stem_conv, stem_pool
from kd_lightning.networks.weights import read_weights, refuse_misfits

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 with 16, 32 and 64 channels: (N,in_channels,H,W) -> (N,num_classes).

    The maps of the three groups are the outputs of `layer1`, `layer2`, `layer3`; the feature has 64 values.
    "resnet8x4" and "resnet32x4" of the distillation tables are depths 8 and 32 with `widths=(32, 64, 128, 256)`.

    Args:
        depth: 8, 14, 20, 26, 32, 44, 56, 110 ...
        num_classes: logits.
        in_channels: channels of the image.
        shortcut: where the shape changes, "A" takes every second pixel and appends channels of zeros (the
            paper on CIFAR; no parameters), "B" is a 1x1 convolution with BatchNorm (the usual CIFAR-100
            distillation tables).
        widths: channels after the stem and of the three groups.
        stem: for images larger than 32x32, see `stem.py`.
        first_stride: of the first group; 2 halves the map, as in the other groups.

    Raises:
        ValueError: a depth that is not 6n+2, an unknown shortcut, not four widths.
    """

    published = ((r"^fc\.", "head."),)
    """Names in RepDistiller's checkpoints, as patterns -> ours."""

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        in_channels: int = 3,
        shortcut: Literal["A", "B"] = "A",
        widths: Sequence[int] = (16, 16, 32, 64),
        stem: Stem = "full",
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet has depth 6n+2 (8, 14, 20, 26, 32, 44, 56, 110), got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"unknown shortcut {shortcut!r}: take A or B")
        if len(widths) != 4:
            raise ValueError(f"CifarResNet takes four widths (stem and three groups), got {list(widths)}")
        n, (first, *groups) = (depth - 2) // 6, widths
        self.conv1 = stem_conv(in_channels, first, stem)
        self.bn1 = nn.BatchNorm2d(first)
        self.shrink = stem_pool(stem)
        self.layer1 = _group(n, first, groups[0], first_stride, shortcut)
        self.layer2 = _group(n, groups[0], groups[1], 2, shortcut)
        self.layer3 = _group(n, groups[1], groups[2], 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(groups[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        x = self.shrink(F.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`."""
        return _places(3, "shrink")


class ResNet(torchvision_resnet.ResNet):
    """ResNet-18, -34 or -50 for small images: torchvision's, with a 3x3 stem of stride 1 and without max pooling.

    (N,in_channels,H,W) -> (N,num_classes). Module paths are torchvision's, so that published weights of this
    shape load; the head is `fc` (see `networks.head_of`), the feature has 512 values, of ResNet-50 2,048.

    Args:
        depth: 18, 34 or 50.
        num_classes: logits.
        in_channels: channels of the image.
        stem: for images larger than 32x32, see `stem.py`.
        first_stride: of the first group; 2 halves the map, as in the other groups.
        backbone: file of torchvision's weights of that depth for ``stem="imagenet"``, read but for the last layer;
            None for fresh weights.

    Raises:
        ValueError: another depth.
        TeacherError: there is no such file, or it holds another network.
    """

    published = ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc."))
    """Names in RepDistiller's checkpoints, as patterns -> ours."""

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        in_channels: int = 3,
        stem: Stem = "full",
        first_stride: int = 1,
        backbone: str | None = None,
    ) -> None:
        if depth not in _BLOCKS:
            raise ValueError(f"ResNet for small images has depth 18, 34 or 50, got {depth}")
        kind: Any = _Bottleneck if depth == 50 else _Basic
        super().__init__(kind, list(_BLOCKS[depth]), num_classes=num_classes)
        self.conv1 = stem_conv(in_channels, 64, stem)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = stem_pool(stem)
        if first_stride != 1:
            self.inplanes = 64
            self.layer1 = self._make_layer(kind, 64, _BLOCKS[depth][0], stride=first_stride)
            for module in self.layer1.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if backbone is not None:
            found, own = (
                {k: v for k, v in weights.items() if not k.startswith("fc.")}
                for weights in (read_weights(backbone), self.state_dict())
            )
            refuse_misfits(found, own, Path(backbone), into="the backbone")
            self.load_state_dict(found, strict=False)

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`."""
        return _places(4, "maxpool")


class _Basic(torchvision_resnet.BasicBlock):
    """torchvision's block, whose last activation is a module of its own, so that one can look before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        residual += x if self.downsample is None else self.downsample(x)
        active: Tensor = self.last(residual)
        return active


class _Bottleneck(torchvision_resnet.Bottleneck):
    """The same of torchvision's block with three convolutions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        residual = self.bn3(self.conv3(reduced))
        residual += x if self.downsample is None else self.downsample(x)
        active: Tensor = self.last(residual)
        return active


def _places(groups: int, stem: str) -> dict[str, list[str]]:
    blocks = [f"layer{number + 1}" for number in range(groups)]
    return {"stem": [stem], "blocks": blocks, "before": [f"{block}.-1.last:input" for block in blocks]}


class _Subsample(nn.Module):
    """Shortcut A: every `stride`-th pixel, then zeros for the missing channels."""

    def __init__(self, stride: int, missing: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


def _group(n: int, inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Sequential:
    blocks = [_block(inputs, outputs, stride, shortcut)]
    blocks += [_block(outputs, outputs, 1, shortcut) for _ in range(n - 1)]
    return nn.Sequential(*blocks)


def _block(inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Module:
    down: nn.Module | None = None
    changes = inputs != outputs or stride != 1
    if changes and shortcut == "A":
        down = _Subsample(stride, outputs - inputs)
    elif changes:
        down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return _Basic(inputs, outputs, stride, down)
