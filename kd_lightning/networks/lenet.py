"""LeNet-5 as data-free papers use it (LeCun et al. 1998, with ReLU and max pooling)."""

from collections.abc import Sequence

from torch import Tensor, nn


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
            raise ValueError(f"LeNet5 takes four widths (three convolutions, one linear), got {list(widths)}")
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
            raise ValueError(f"LeNet5 takes images of 32x32, got {x.shape[-2]}x{x.shape[-1]}: resize or pad them")
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


def _conv(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return [nn.Conv2d(inputs, outputs, 5), *norm, nn.ReLU()]
