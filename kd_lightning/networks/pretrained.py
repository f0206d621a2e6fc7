"""Load published weights: BigGAN-deep, U2-Net, CGN and TinyGAN.

For each, a function maps the names in the network to those in the file, so that messages use the file's names. Nothing
is downloaded, files that hold more than tensors are refused, and every name and shape must fit. The two vectors of
spectral norm are loaded, not estimated again: call ``eval()`` before the first forward pass, because each one in
training mode changes them. CGNs have their names as ``published``, which :func:`~.weights.load_weights` reads.

    * BigGAN-deep: Hugging Face's ``biggan-deep-{128,256,512}-pytorch_model.bin`` (506, 602 and 698 names).
    * U2-Net: ``u2net.pth`` and ``u2netp.pth`` of its authors (798 names each).
    * CGN on ImageNet: ``cgn.pth`` (3,206 names), the four BigGANs and the U2-Net of one CGN.
    * CGN on MNIST: ``ckp.pth`` (57 names).
    * TinyGAN: ``model_30.tar`` with generator and discriminator; SKDCGN's ``generator_<epoch>.pt``, generator only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from kd_lightning.errors import TeacherError
from kd_lightning.networks.weights import read_weights, refuse_misfits

_SPECTRAL = (
    (r"\.parametrizations\.weight\.original$", ".weight_orig"),
    (r"\.parametrizations\.weight\.0\._([uv])$", r".weight_\1"),
)
_BIGGAN = (
    (r"^(?!embeddings)", "generator."),
    (r"^generator\.(weight|bias)$", r"generator.bn.\1"),
    (r"\.norms\.(\d)\.(statistics\.)?", r".bn_\1."),
    (r"\.convs\.(\d)\.", r".conv_\1."),
    (r"^(generator\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"\.query\.", ".snconv1x1_theta."),
    (r"\.key\.", ".snconv1x1_phi."),
    (r"\.value\.", ".snconv1x1_g."),
    (r"\.out\.", ".snconv1x1_o_conv."),
)
_SHAPE = (0, 4, 5, 9, 10)
_TEXTURE = (0, 3, 4, 7, 8, 10, 11)


def load_biggan_deep(net: nn.Module, path: str | Path) -> None:
    """Load a Hugging Face file into a ``biggan_deep.BigGanDeepGenerator`` of the same size.

    Raises:
        TeacherError: there is no such file, it holds more than tensors, or names or shapes do not fit.
    """
    _load({"": (net, biggan_deep_names(net))}, _read(path), path, into="BigGAN-deep")


def load_u2net(net: nn.Module, path: str | Path) -> None:
    """Load the authors' file into a ``U2Net``, the large or the small one.

    Raises:
        TeacherError: there is no such file, it holds more than tensors, or names or shapes do not fit.
            The two sizes have the same names.
    """
    found = _read(path)
    _load({"": (net, u2net_names(net))}, found, path, into="U2-Net")


def load_tiny_gan(
    path: str | Path, *, generator: nn.Module | None = None, discriminator: nn.Module | None = None
) -> None:
    """Load a file of TinyGAN's or SKDCGN's authors into the networks of ``networks.generators.tiny_gan``.

    Args:
        path: the file; to load a discriminator, one that holds both.
        generator: the network to load, or None.
        discriminator: the network to load, or None.

    Raises:
        TeacherError: there is no such file, it holds more than tensors, or names or shapes do not fit.
    """
    if generator is not None:
        named = tiny_generator_names(generator)
        _load({"": (generator, named)}, _read(path, inside="G"), path, into="TinyGAN's generator")
    if discriminator is not None:
        named = tiny_discriminator_names(discriminator)
        _load({"": (discriminator, named)}, _read(path, inside="D"), path, into="TinyGAN's discriminator")


def biggan_deep_names(net: nn.Module) -> dict[str, str]:
    """Map our names to Hugging Face's."""
    return _names(net.state_dict(), _BIGGAN)


def u2net_names(net: nn.Module) -> dict[str, str]:
    """Map our names to the authors'."""
    rules: list[tuple[str, str]] = []
    depths = [len(cast(Any, stage).down) for stage in cast(Any, net).encoder]
    for i, depth in enumerate(depths):
        ups = [(rf"^(stage{i + 1}d?)\.up\.{k}\.", rf"\1.rebnconv{depth - 1 - k}d.") for k in range(depth - 1)]
        downs = [(rf"^(stage{i + 1}d?)\.down\.{k}\.", rf"\1.rebnconv{k + 1}.") for k in range(depth)]
        last = len(depths) - 2 - i  # the decoder starts at the deepest stage but one
        rules += [(rf"^encoder\.{i}\.", f"stage{i + 1}."), (rf"^decoder\.{last}\.", f"stage{i + 1}d.")]
        rules += [*ups, *downs, (rf"^sides\.{i}\.", f"side{i + 1}.")]
    rules += [
        (r"\.enter\.", ".rebnconvin."),
        (r"(rebnconv\w+)\.0\.", r"\1.conv_s1."),
        (r"(rebnconv\w+)\.1\.", r"\1.bn_s1."),
    ]
    return _names(net.state_dict(), rules)


def cgn_mnist_names(net: nn.Module) -> dict[str, str]:
    """Map our names to the authors': the layers with weights of each part, in order, to those of the file.

    Raises:
        TeacherError: the number of layers differs.
    """
    named = {"label_emb.weight": "label_emb.weight"}
    for part, prefix, indices in (
        ("shape", "f_shape", _SHAPE),
        ("fg", "f_text1", _TEXTURE),
        ("bg", "f_text2", _TEXTURE),
    ):
        holding = [name for name, module in net.get_submodule(part).named_modules() if _own(module)]
        if len(holding) != len(indices):
            raise TeacherError(
                f"weights: CGN for MNIST has {len(indices)} layers with weights in {prefix}, the network has "
                f"{len(holding)} in {part}: {', '.join(holding)}. Choose the network of the paper"
            )
        for name, index in zip(holding, indices, strict=True):
            layer = net.get_submodule(f"{part}.{name}")
            named |= {f"{part}.{name}.{own}": f"{prefix}.{index}.{own}" for own in _own(layer)}
    return named


def tiny_generator_names(net: nn.Module) -> dict[str, str]:
    """Map our names to the authors'."""
    return _names(net.state_dict(), [(r"^embedding\.", "embeding.")])


def tiny_discriminator_names(net: nn.Module) -> dict[str, str]:
    """Map our names to the authors', whose layer numbers count activations too."""
    named = _names(net.state_dict(), [(r"^embedding\.", "embeding.")])
    even = lambda name: re.sub(r"^layers\.(\d+)", lambda found: f"layers.{2 * int(found[1])}", name)  # noqa: E731
    return {ours: even(theirs) for ours, theirs in named.items()}


def _names(ours: Iterable[str], rules: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = {}
    rules = [*_SPECTRAL, *rules]
    for name in ours:
        theirs = name
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        named[name] = theirs
    return named


def _own(module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in tensors]


def _read(path: str | Path, *, inside: str | None = None) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in read_weights(path, inside=inside).items()}


def _load(
    parts: Mapping[str, tuple[nn.Module, Mapping[str, str]]], found: dict[str, Tensor], path: str | Path, *, into: str
) -> None:
    """Load all parts of a file, each with its prefix, or none if one does not fit."""
    wanted = {
        prefix + named[ours]: value
        for prefix, (net, named) in parts.items()
        for ours, value in net.state_dict().items()
    }
    for name in wanted.keys() & found.keys():
        if wanted[name].numel() == found[name].numel() == 1:  # one number, with or without dimensions
            found[name] = found[name].reshape(wanted[name].shape)
    refuse_misfits(found, wanted, path, into=into)
    for prefix, (net, named) in parts.items():
        net.load_state_dict({ours: found[prefix + theirs] for ours, theirs in named.items()})
