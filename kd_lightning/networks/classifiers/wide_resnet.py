"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016)."""

from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.classifiers.stem import Stem, stem_conv, stem_pool


class WideResNet(nn.Module):
    """WRN-depth-widen: (N,in_channels,H,W) -> (N,num_classes), with 16, 32 and 64 times `widen` channels.

    The outputs of `block1`, `block2` and `block3` are the maps that attention transfer and ZSKT compare; the
    feature has 64 * widen values.

    Args:
        depth: 6n+4, such as 16 or 40.
        widen: factor of the channels.
        num_classes: logits.
        in_channels: channels of the image.
        dropout: between the two convolutions of each block.
        stem: for images larger than 32x32, see `stem.py`; BatchNorm and ReLU follow all but `full`.

    Raises:
        ValueError: a depth that is not 6n+4, or a factor below 1.
    """

    published = (
        (r"^(block\d)\.layer\.", r"\1."),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^bn1\.", "bn."),
        (r"^fc\.", "head."),
    )
    """Names in RepDistiller's checkpoints, as patterns -> ours."""

    def __init__(
        self,
        *,
        depth: int,
        widen: int,
        num_classes: int,
        in_channels: int = 3,
        dropout: float = 0.0,
        stem: Stem = "full",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet has depth 6n+4 (10, 16, 22, 28, 40), got {depth}")
        if widen < 1:
            raise ValueError(f"WideResNet needs widen >= 1, got {widen}")
        n = (depth - 4) // 6
        self.conv1 = stem_conv(in_channels, 16, stem)
        larger = [] if stem == "full" else [nn.BatchNorm2d(16), nn.ReLU(), stem_pool(stem)]
        self.shrink = nn.Sequential(*larger)
        self.block1 = _group(n, 16, 16 * widen, 1, dropout)
        self.block2 = _group(n, 16 * widen, 32 * widen, 2, dropout)
        self.block3 = _group(n, 32 * widen, 64 * widen, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        x = self.block3(self.block2(self.block1(self.shrink(self.conv1(x)))))
        logits: Tensor = self.head(self.pool(F.relu(self.bn(x))).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`; the next layer's batch norm is what is activated."""
        before = ["block2.0.bn1", "block3.0.bn1", "bn"]
        return {"stem": ["shrink"], "blocks": ["block1", "block2", "block3"], "before": before}


class _PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; a shortcut that changes channels starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        kept = x if self.shortcut is None else self.shortcut(active)
        total: Tensor = kept + residual
        return total


def _group(n: int, inputs: int, outputs: int, stride: int, dropout: float) -> nn.Sequential:
    blocks = [_PreActivationBlock(inputs, outputs, stride, dropout)]
    blocks += [_PreActivationBlock(outputs, outputs, 1, dropout) for _ in range(n - 1)]
    return nn.Sequential(*blocks)
