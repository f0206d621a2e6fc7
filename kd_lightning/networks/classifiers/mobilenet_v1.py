"""MobileNetV1 (Howard et al., 2017): the student of the ImageNet distillation tables."""

from itertools import pairwise

from torch import Tensor, nn

from kd_lightning.networks.classifiers.mobilenet import convolved

_STAGES = ((64,), (128, 128), (256, 256), (512, 512, 512, 512, 512, 512), (1024, 1024))
"""Channels of the blocks of each stage; the first block of each but the first has stride 2."""


class MobileNetV1(nn.Module):
    """Depthwise and 1x1 convolutions in turn: (N,in_channels,H,W) -> (N,num_classes); the feature has 1,024 values.

    4,231,976 parameters for 1,000 classes and colour images.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        stride: of the first convolution; 2 for images of 224x224, whose last map is 7x7.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*convolved(in_channels, 32, 3, stride=stride))
        stages: list[nn.Module] = []
        inputs = 32
        for number, widths in enumerate(_STAGES):
            strides = (1 if number == 0 else 2, *[1] * (len(widths) - 1))
            blocks = [_separable(*pair, step) for pair, step in zip(pairwise((inputs, *widths)), strides, strict=True)]
            stages.append(nn.Sequential(*blocks))
            inputs = widths[-1]
        self.groups = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.groups(self.conv1(x))).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`."""
        blocks = [f"groups.{number}" for number in range(1, len(_STAGES))]
        return {"stem": ["groups.0"], "blocks": blocks, "before": [f"{block}.-1.-1:input" for block in blocks]}


def _separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 3x3 convolution of each channel by itself, and a 1x1 convolution."""
    return nn.Sequential(*convolved(inputs, inputs, 3, stride=stride, groups=inputs), *convolved(inputs, outputs, 1))
