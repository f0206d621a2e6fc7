"""LeNet-5 as data-free papers use it (LeCun et al. 1998, with ReLU and max pooling)."""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.errors import SizeError
from kd_lightning.networks.classifiers.small import relus


class LeNet5(nn.Module):
    """LeNet-5 for images of 32x32: (N,in_channels,32,32) -> (N,num_classes).

    The feature is the vector of `widths[2]` values before the two linear layers, which together are `head`
    (DAFL takes its activation loss there). "LeNet5-half" is `widths=(3, 8, 60, 42)`. The paper's net has no
    BatchNorm; methods that need BatchNorm statistics take `batch_norm=True`, one after each convolution.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (6, 16, 120, 84),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise SizeError(f"LeNet5 takes four widths (three convolutions, one linear), got {list(widths)}")
        first, second, feature, hidden = widths
        self.features = nn.Sequential(
            *_conv(in_channels, first, batch_norm),
            nn.MaxPool2d(2),
            *_conv(first, second, batch_norm),
            nn.MaxPool2d(2),
            *_conv(second, feature, batch_norm),
        )
        self.head = nn.Sequential(nn.Linear(feature, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,32,32); ValueError at another size."""
        if x.shape[-2:] != (32, 32):
            raise SizeError(f"LeNet5 takes images of 32x32, got {x.shape[-2]}x{x.shape[-1]}: set data.size=32")
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`."""
        return relus(self.features)


class FsbbtLeNet5(nn.Module):
    """The LeNet-5 of FS-BBT (Nguyen et al., ECCV 2022) for images of 28x28: (N,in_channels,28,28) -> (N,num_classes).

    Its second convolution keeps the size (padding "same") and there is no third: with 82,826 parameters it is
    larger than `LeNet5`. Its "half" has half the filters, `widths=(3, 8)`, and the same linear layers: 46,380.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, widths: Sequence[int] = (6, 16)) -> None:
        super().__init__()
        if len(widths) != 2:
            raise SizeError(f"FsbbtLeNet5 takes two widths, got {list(widths)}")
        first, second = widths
        self.features = nn.Sequential(
            *_conv(in_channels, first, batch_norm=False),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36 * second, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,28,28); ValueError at another size."""
        if x.shape[-2:] != (28, 28):
            raise SizeError(f"FsbbtLeNet5 takes images of 28x28, got {x.shape[-2]}x{x.shape[-1]}: set data.size=28")
        logits: Tensor = self.head(self.features(x))
        return logits


def _conv(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return [nn.Conv2d(inputs, outputs, 5), *norm, nn.ReLU()]
