"""DenseNet (Huang et al., CVPR 2017) with a stem for small images."""

from torch import nn
from torchvision import models

from kd_lightning.networks.classifiers.stem import Stem, stem_conv, stem_pool

_SHAPES = {121: (32, (6, 12, 24, 16)), 161: (48, (6, 12, 36, 24))}


class DenseNet(models.DenseNet):
    """DenseNet-121 or -161: torchvision's, with another stem; (N,in_channels,H,W) -> (N,num_classes).

    Module paths are torchvision's; the head is `classifier`, the feature has 1,024 values, of DenseNet-161 2,208.

    Args:
        depth: 121 or 161.
        num_classes: logits.
        in_channels: channels of the image.
        stem: `full` for 32x32, a 3x3 convolution only; see `stem.py` for larger images.

    Raises:
        ValueError: `depth` is neither.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int = 3, stem: Stem = "full") -> None:
        if depth not in _SHAPES:
            raise ValueError(f"DenseNet has depth 121 or 161, got {depth}")
        growth, blocks = _SHAPES[depth]
        super().__init__(growth, blocks, 2 * growth, num_classes=num_classes)
        self.features.conv0 = stem_conv(in_channels, 2 * growth, stem)
        nn.init.kaiming_normal_(self.features.conv0.weight)
        self.features.pool0 = stem_pool(stem)
        if stem == "full":  # the first block starts with a BatchNorm
            self.features.norm0 = nn.Identity()
            self.features.relu0 = nn.Identity()
