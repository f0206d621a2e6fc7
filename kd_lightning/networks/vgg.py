"""VGG (Simonyan and Zisserman, ICLR 2015) with BatchNorm and one linear layer, for images of 32x32."""

from torch import Tensor, nn

_STAGES = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}


class VGG(nn.Module):
    """VGG-8, -11 or -13: (N,in_channels,H,W) -> (N,num_classes), H and W at least 32.

    Five stages of 3x3 convolutions, each with BatchNorm and ReLU, and max pooling after every stage. The
    feature has 512 values: what the last pooling leaves of 32x32, the average over positions of larger
    images.

    Raises:
        ValueError: a depth other than 8, 11 and 13.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"VGG has depth 8, 11 or 13, got {depth}")
        channels = in_channels
        stages: list[nn.Module] = []
        for widths in _STAGES[depth]:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits
