"""A convolutional net for very small images, where one step takes about a millisecond."""

from collections.abc import Sequence

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """3x3 convolutions with ReLU, max pooling between them: (N,in_channels,H,W) -> (N,num_classes).

    Any H, W >= 8. The feature is the average over positions of the last map, `widths[-1]` values; with `grid=4` over
    each of 4x4 parts of the map, sixteen times as many, which keeps positions. `batch_norm=True` puts one BatchNorm
    after each convolution. There are at most three poolings, so that an image of 8x8 keeps at least one position.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        batch_norm: bool = False,
        grid: int = 1,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("SmallConvNet needs at least one width")
        layers: list[nn.Module] = []
        for depth, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            if 0 < depth <= 3:
                layers.append(nn.MaxPool2d(2))
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.head = nn.Linear(widths[-1] * grid**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`: the ReLUs, and the first convolution as stem."""
        return relus(self.features)


def relus(features: nn.Sequential) -> dict[str, list[str]]:
    """Taps at each ReLU of a sequence that is called ``features``, and at its first layer."""
    found = [f"features.{place}" for place, layer in enumerate(features) if isinstance(layer, nn.ReLU)]
    return {"stem": ["features.0"], "blocks": found, "before": [f"{relu}:input" for relu in found]}
