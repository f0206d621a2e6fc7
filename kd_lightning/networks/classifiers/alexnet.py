"""AlexNet for images of 32x32, as FS-BBT's authors cut it down (Nguyen et al., ECCV 2022)."""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.errors import SizeError


class AlexNet(nn.Module):
    """Five convolutions and three linear layers: (N,in_channels,32,32) -> (N,num_classes).

    Kernels 5, 5, 3, 3, 3; max pooling 3/2 after the first, second and fifth; BatchNorm after each ReLU (and pooling
    or dropout) except in the last layer. 1,659,178 parameters for ten classes; with all widths halved, 417,434.
    Weights have PyTorch's initial values, without the ones that Keras sets in three biases.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (48, 128, 192, 192, 128),
        hidden: Sequence[int] = (512, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(widths) != 5 or len(hidden) != 2:
            raise SizeError(f"AlexNet takes five widths and two hidden, got {list(widths)} and {list(hidden)}")
        layers: list[nn.Module] = []
        for depth, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            layers += [nn.Conv2d(inputs, outputs, 5 if depth < 2 else 3, padding="same"), nn.ReLU()]
            if depth in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2))
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.Flatten())
        for inputs, outputs in zip((9 * widths[-1], *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout), nn.BatchNorm1d(outputs)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,32,32); ValueError at another size."""
        if x.shape[-2:] != (32, 32):
            raise SizeError(f"AlexNet takes images of 32x32, got {x.shape[-2]}x{x.shape[-1]}: set data.size=32")
        logits: Tensor = self.head(self.features(x))
        return logits
