"""ResNets of full width for large images, which start from torchvision's weights for ImageNet but for the last layer."""

from pathlib import Path

from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from kd_lightning.errors import TeacherError
from kd_lightning.networks.weights import read_weights, refuse_misfits

KINDS = {18: resnet18, 34: resnet34, 50: resnet50}


def resnet(*, depth: int, num_classes: int, backbone: str | None = None) -> nn.Module:
    """Torchvision's ResNet-18, -34 or -50 with a new head: (N,3,H,W) -> (N,num_classes).

    Args:
        depth: 18, 34 or 50.
        num_classes: logits.
        backbone: file of its weights for ImageNet, whose last layer is left out; None for fresh weights.

    Raises:
        ValueError: another depth.
        TeacherError: there is no such file, or it holds another network.
    """
    if depth not in KINDS:
        raise ValueError(f"torchvision's ResNet has depth 18, 34 or 50 here, got {depth}")
    net = KINDS[depth](num_classes=num_classes)
    if backbone is None:
        return net
    if not Path(backbone).expanduser().is_file():
        raise TeacherError(f"backbone: there is no file {backbone}. Give torchvision's weights of a ResNet, or null")
    found = {k: v for k, v in read_weights(backbone).items() if not k.startswith("fc.")}
    refuse_misfits(found, {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, Path(backbone),
                   into="the backbone")  # fmt: skip
    net.load_state_dict(found, strict=False)
    return net
