"""DeepLabv3 (Chen et al. 2017, arXiv 1706.05587), the teacher and the student of DFAD's segmentation tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead


class DeepLab(nn.Module):
    """torchvision's backbone and head: (N, 3, H, W) -> (N, num_classes, H, W), any H, W.

    Maps are an eighth of the image high and wide; logits are resized to the image (bilinear). Module paths are
    torchvision's, so that its published weights fit ``backbone="resnet50"``. The head pools over the whole image: a
    batch of one image cannot be normalised there while training.

    Args:
        num_classes: logits of a pixel.
        backbone: ``resnet50``, 2,048 channels, or ``mobilenet_v2``, 320 channels.
        rates: dilations of the head's 3x3 convolutions; torchvision's and the paper's are 12, 24, 36, those of DFAD's
            code 12, 24, 32.
        dropout: in the head. DFAD's code has 0 in the teacher and 0.5 in the student, which stays active while the
            student imitates and while the generator learns.
    """

    needs = frozenset({"task.segmentation"})

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Literal["resnet50", "mobilenet_v2"] = "resnet50",
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels, layers, last = _backbone(backbone)
        self.backbone = IntermediateLayerGetter(layers, {last: "out"})
        self.classifier = DeepLabHead(channels, num_classes, tuple(rates))
        for module in self.classifier.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, 3, H, W)."""
        logits = self.classifier(self.backbone(x)["out"])
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _backbone(name: str) -> tuple[int, nn.Module, str]:
    """Channels, layers and the name of the last of them."""
    if name == "resnet50":
        return 2048, resnet50(weights=None, replace_stride_with_dilation=[False, True, True]), "layer4"
    if name == "mobilenet_v2":
        return 320, dilated_mobilenet(), "17"
    raise ValueError(f"unknown backbone {name!r}: take resnet50 or mobilenet_v2")


def dilated_mobilenet() -> nn.Sequential:
    """MobileNetV2 of torchvision without its last convolution: (N, 3, H, W) -> (N, 320, H/8, W/8).

    From an eighth of the image on, a group of blocks that would halve the map doubles the dilation of all later groups
    instead. As in DFAD's code, a block pads the map before its first convolution and not before its depthwise one.
    """
    layers = mobilenet_v2(weights=None).features[:-1]
    stride, dilation, later = 2, 1, 1
    for block in layers[1:]:
        depthwise = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        if not block.use_res_connect:  # the first of its group
            dilation = later
        if depthwise.stride == (2, 2):
            if stride < 8:
                stride *= 2
            else:
                depthwise.stride = (1, 1)
                later *= 2
        depthwise.padding, depthwise.dilation = (0, 0), (dilation, dilation)
        block.conv = PaddedFirst(block.conv, padding=dilation)
    return layers


class PaddedFirst(nn.Sequential):
    """The layers of a block, on a map with a border of zeros.

    Args:
        layers: of the block.
        padding: width of the border.
    """

    def __init__(self, layers: nn.Sequential, *, padding: int) -> None:
        super().__init__(*layers)
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        """The block's map; a depthwise 3x3 convolution takes the border away again."""
        output: Tensor = super().forward(F.pad(input, (self.padding,) * 4))
        return output
