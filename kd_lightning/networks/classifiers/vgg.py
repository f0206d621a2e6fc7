"""VGG (Simonyan and Zisserman, ICLR 2015) with BatchNorm, for images of 32x32 and larger."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

_STAGES = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """VGG-8, -11, -13 or -19: (N,in_channels,H,W) -> (N,num_classes), H and W at least 2^pools.

    Five stages of 3x3 convolutions, each with BatchNorm and ReLU, and max pooling after the first `pools` of them. The
    feature is the output of a last pooling, `512 * grid**2` values; with the defaults the average over positions.

    Args:
        depth: 8, 11, 13 or 19.
        num_classes: logits.
        in_channels: channels of the image.
        pools: stages followed by max pooling. The usual CIFAR-100 distillation tables have 3.
        grid: height and width of the last pooling's output.
        pooling: what the last pooling computes of each part of the map.
        hidden: widths of linear layers in the head, each with ReLU and dropout of 0.5.

    Raises:
        ValueError: another depth, or more pools than stages.
    """

    published = ((r"^block(\d)\.", r"features.\1."), (r"^classifier\.", "head."))
    """Names in RepDistiller's checkpoints, as patterns -> ours."""

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        in_channels: int = 3,
        pools: int = 5,
        grid: int = 1,
        pooling: Literal["mean", "max"] = "mean",
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"VGG has depth 8, 11, 13 or 19, got {depth}")
        if not 0 <= pools <= 5:
            raise ValueError(f"VGG has five stages, got pools={pools}")
        channels = in_channels
        stages: list[nn.Module] = []
        for number, widths in enumerate(_STAGES[depth]):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            stages.append(nn.Sequential(*layers, *([nn.MaxPool2d(2)] if number < pools else [])))
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(grid) if pooling == "mean" else nn.AdaptiveMaxPool2d(grid)
        self.head = _head(channels * grid**2, hidden, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`: of each stage the last ReLU, before the pooling."""
        stages: list[Any] = list(self.features)
        last = [max(i for i, layer in enumerate(stage) if isinstance(layer, nn.ReLU)) for stage in stages]
        relus = [f"features.{stage}.{place}" for stage, place in enumerate(last)]
        return {"stem": relus[:1], "blocks": relus[1:], "before": [f"{relu}:input" for relu in relus[1:]]}


def _head(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.5)]
        inputs = width
    last = nn.Linear(inputs, outputs)
    return nn.Sequential(*layers, last) if layers else last
