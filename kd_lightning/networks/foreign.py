"""Networks of other libraries and of whole-network files, as teachers that bring their weights.

Each takes images (N, C, H, W) in [0, 1]; those whose library knows their size and normalisation apply both themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.extras import install_package
from kd_lightning.core.sides import Size
from kd_lightning.core.strangers import in_a_line
from kd_lightning.errors import TeacherError
from kd_lightning.networks.outputs import resized


class Foreign(nn.Module):
    """Resizes images in [0, 1] to the size that ``net`` takes, and normalises them as it was trained.

    Args:
        net: the network.
        mean: per channel.
        std: per channel.
        size: height and width in pixels, or one number for both; None for images of any size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Sequence[float], std: Sequence[float], size: Size | None) -> None:
        super().__init__()
        self.net, self.size = net, size
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """Whatever ``net`` answers."""
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 and len(self.mean) == 3 else x  # grey for a network of colours
        return self.net((resized(x, self.size) - self.mean) / self.std)


class Exported(nn.Module):
    """A program of ``torch.export``, which has no training mode."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> Exported:
        """Stay as it was exported."""
        return self

    def forward(self, x: Tensor) -> Any:
        """Whatever the program answers."""
        return self.program(x)


def torchscript(file: str) -> nn.Module:
    """The network of a TorchScript file; its code runs.

    Raises:
        TeacherError: it is no TorchScript file.
    """
    with warnings.catch_warnings(action="ignore"):
        return _read(file, "a TorchScript network", lambda path: torch.jit.load(path, map_location="cpu"))


def exported(file: str) -> nn.Module:
    """The network of a ``torch.export`` file (.pt2).

    Raises:
        TeacherError: it is no such file.
    """
    return _read(file, "an exported network (.pt2)", lambda path: Exported(torch.export.load(path).module()))


def torchvision(name: str, weights: str = "DEFAULT", **settings: Any) -> nn.Module:
    """A classifier of torchvision with its pretrained weights, size and normalisation.

    Args:
        name: such as ``resnet50``.
        weights: such as ``DEFAULT`` or ``IMAGENET1K_V1``.
        **settings: further ones of its constructor.
    """
    from torchvision import models

    entry = models.get_model_weights(name)[weights]
    transforms: Any = entry.transforms()
    size = transforms.crop_size[0]
    return Foreign(
        models.get_model(name, weights=entry, **settings), mean=transforms.mean, std=transforms.std, size=size
    )


def timm(name: str, pretrained: bool = True, **settings: Any) -> nn.Module:
    """A classifier of timm with its pretrained weights, size and normalisation.

    Args:
        name: such as ``resnet50.a1_in1k``.
        pretrained: load its weights.
        **settings: further ones of ``timm.create_model``.

    Raises:
        TeacherError: timm is not installed.
    """
    net = _library("timm").create_model(name, pretrained=pretrained, **settings)
    config: Any = net.pretrained_cfg
    mean, std = config["mean"], config["std"]
    if (channels := settings.get("in_chans", len(mean))) != len(mean):
        mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
    return Foreign(net, mean=mean, std=std, size=config["input_size"][-2:])


def huggingface(name: str, **settings: Any) -> nn.Module:
    """An image classifier of Hugging Face's hub, or of a folder, with its weights, size and normalisation.

    Args:
        name: such as ``google/vit-base-patch16-224``, or a folder.
        **settings: further ones of ``from_pretrained``.

    Raises:
        TeacherError: transformers is not installed.
    """
    library = _library("transformers")
    net = library.AutoModelForImageClassification.from_pretrained(name, **settings)
    reader = library.AutoImageProcessor.from_pretrained(name)
    size: Any = getattr(reader, "crop_size", None) if getattr(reader, "do_center_crop", False) else reader.size
    pixels = size.get("height") or size.get("shortest_edge") if hasattr(size, "get") else size
    return Foreign(net, mean=reader.image_mean, std=reader.image_std, size=pixels)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise TeacherError(f"teacher: {name} is not installed: {install_package(name)}") from error


def _read(file: str, what: str, load: Any) -> nn.Module:
    path = Path(file).expanduser()
    if not path.is_file():
        raise TeacherError(f"teacher.file: there is no file {path}")
    try:
        return load(str(path))
    except Exception as error:  # torch raises many kinds of errors on other files
        raise TeacherError(f"teacher.file: {path} is not {what}: {in_a_line(error)}") from error
