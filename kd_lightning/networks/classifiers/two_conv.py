"""The small networks of the pilot for adaptation of digits: two convolutions and a hidden layer."""

from torch import Tensor, nn

from kd_lightning.core.sides import Size, halved


class TwoConvNet(nn.Module):
    """3x3 convolutions of `width` and twice as many channels: (N,in_channels,H,W) -> (N,num_classes).

    Each is followed by BatchNorm, ReLU and a 2x2 max pooling; then come a linear layer, ReLU and `head`. The feature
    is the vector of `features` values.

    Args:
        size: height and width, or one number for both, multiples of 4.
        width: channels of the first convolution.
        features: values of the feature vector.
        num_classes: logits.
        in_channels: channels of the image.
    """

    def __init__(
        self, *, size: Size, width: int = 16, features: int = 128, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        tall, wide = halved(size, 2, of="TwoConvNet")
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_channels, width), (width, 2 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        flat = 2 * width * tall * wide
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, features), nn.ReLU())
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.features(x))
        return logits
