"""The small networks of the pilot for adaptation of digits: two convolutions and a hidden layer."""

from torch import Tensor, nn


class TwoConvNet(nn.Module):
    """3x3 convolutions of `width` and twice as many channels: (N,in_channels,size,size) -> (N,num_classes).

    Each is followed by BatchNorm, ReLU and a 2x2 max pooling; then come a linear layer, ReLU and `head`. The feature
    is the vector of `features` values.

    Args:
        size: side in pixels, a multiple of 4.
        width: channels of the first convolution.
        features: values of the feature vector.
        num_classes: logits.
        in_channels: channels of the image.
    """

    def __init__(
        self, *, size: int, width: int = 16, features: int = 128, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"TwoConvNet halves the image twice: size={size} is no multiple of 4")
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_channels, width), (width, 2 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        flat = 2 * width * (size // 4) ** 2
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, features), nn.ReLU())
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,size,size)."""
        logits: Tensor = self.head(self.features(x))
        return logits
