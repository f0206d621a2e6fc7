"""MobileNetV2 (Sandler et al., CVPR 2018) as in the CIFAR-100 distillation tables."""

from typing import Literal

from torch import Tensor, nn

_GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Of each group: channels, number of blocks, and stride of the first block."""


class MobileNetV2(nn.Module):
    """Inverted residual blocks: (N,in_channels,H,W) -> (N,num_classes); the feature has 1,280 values.

    Differs from torchvision's: ReLU instead of ReLU6, channels are rounded down instead of to multiples of 8, and the
    first block has an expanding convolution too. The CIFAR-100 tables use `width=0.5`.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        width: factor of all channels except the feature's.
        expansion: T, factor of the channels inside a block.
        stem: height and width after the second group, as a share of the image's: `half` for 32x32, `quarter` for more.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: float = 1.0,
        expansion: int = 6,
        stem: Literal["half", "quarter"] = "half",
    ) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*convolved(in_channels, channels, 3, stride=2))
        groups: list[nn.Module] = []
        for number, (outputs, blocks, stride) in enumerate(_GROUPS):
            if number == 1 and stem == "quarter":
                stride = 2
            group: list[nn.Module] = []
            for place in range(blocks):
                factor = expansion if number else 1
                group.append(_InvertedResidual(channels, int(outputs * width), factor, stride if place == 0 else 1))
                channels = int(outputs * width)
            groups.append(nn.Sequential(*group))
        self.groups = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(*convolved(channels, int(1280 * max(1.0, width)), 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(int(1280 * max(1.0, width)), num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.conv2(self.groups(self.conv1(x)))).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`; its blocks end without an activation."""
        blocks = [f"groups.{number}" for number in (1, 2, 4, 6)]
        return {"stem": ["conv1"], "blocks": blocks, "before": blocks}


class _InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, convolve each channel separately, project back without ReLU."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.body = nn.Sequential(
            *convolved(inputs, inside, 1),
            *convolved(inside, inside, 3, stride=stride, groups=inside),
            *convolved(inside, outputs, 1)[:2],
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def convolved(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps height and width at stride 1, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
