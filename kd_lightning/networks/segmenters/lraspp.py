"""LR-ASPP on MobileNetV3 (Howard et al., ICCV 2019): a small segmenter, the student of KTAAD's table."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large


class LrAspp(nn.Module):
    """torchvision's ``lraspp_mobilenet_v3_large``: (N, 3, H, W) -> (N, num_classes, H, W), any H, W.

    Module paths are torchvision's, so that its published weights fit.

    Args:
        num_classes: logits of a pixel.
    """

    needs = frozenset({"task.segmentation"})

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        built = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone, self.classifier = built.backbone, built.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, 3, H, W)."""
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
