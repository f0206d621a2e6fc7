"""A network in an ONNX file as a torch network, so that a deployed model can be a white-box teacher."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.core import strangers
from kd_lightning.core.extras import install
from kd_lightning.core.notices import keep
from kd_lightning.core.strangers import in_a_line
from kd_lightning.errors import TeacherError

TRIED, FURTHEST = 8, 1e-3
"""Random images on which the torch network is compared with onnxruntime, and the largest difference allowed."""
FREE = 64
"""Height and width of those images where the file leaves them open."""
BLACK_BOX = "Ask it through onnxruntime instead, with teacher.white=false"

Layout = Literal["nchw", "nhwc"]
Order = Literal["rgb", "bgr"]


class FromOnnx(nn.Module):
    """Standardised images (N, C, H, W) to the logits (N, K) of a converted network, which has no training mode.

    Args:
        net: takes images in the file's layout and order of channels.
        layout: of the file's images.
        channel_order: of the file's images; ours are RGB.
        undo: mean and standard deviation per channel to undo, for a file that normalises its images itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        layout: Layout = "nchw",
        channel_order: Order = "rgb",
        undo: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.layout, self.channel_order = net.eval().requires_grad_(False), layout, channel_order
        mean, std = ([0.0], [1.0]) if undo is None else undo
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))

    def train(self, mode: bool = True) -> FromOnnx:
        """Stay as it was deployed: statistics of batches would move every answer."""
        return self

    def forward(self, x: Tensor) -> Any:
        """Whatever the network answers."""
        x = x * self.std + self.mean
        x = x.flip(1) if self.channel_order == "bgr" else x
        return self.net(x.permute(0, 2, 3, 1) if self.layout == "nhwc" else x)


def onnx_network(
    file: str,
    *,
    layout: Layout = "nchw",
    channel_order: Order = "rgb",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> FromOnnx:
    """The network of an ONNX file, without a softmax at its end, compared with onnxruntime on random images.

    How many batch norms it has, and which, is kept with the run's result: methods that read their statistics need them.

    Args:
        file: the file; its first input is images.
        layout: ``nchw``, or ``nhwc`` for images (N, H, W, C).
        channel_order: ``rgb`` or ``bgr``.
        mean: what is subtracted from images before they get here.
        std: by what they are divided; both are undone for a file of ``kd-export``, which normalises itself.

    Raises:
        TeacherError: a package is missing; the file is no ONNX network, cannot be converted, ends in a sigmoid, or
            answers with other than one row an image; the torch network answers something else.
    """
    onnx = _package("onnx")
    path = Path(file).expanduser()
    if not path.is_file():
        raise TeacherError(f"teacher.file: there is no file {path}")
    said = f"teacher.file: {path} is not an ONNX network"
    with strangers.reading(path, error=TeacherError, said=said, advice="expected a .onnx file"):
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    lift_constants(model)
    end = cut_softmax(model, path)
    try:
        net = converted(model)
    except TeacherError:
        raise
    except Exception as error:  # the converter raises whatever an operator that it does not know leads to
        raise TeacherError(f"teacher.file: {path} cannot be converted: {in_a_line(error)}. {BLACK_BOX}") from error
    net.eval().requires_grad_(False)
    compare(path, net, end=end)
    norms = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm)]
    named = f": {', '.join(norms[:3])}{' ...' if len(norms) > 3 else ''}" if norms else ""
    folded = "" if norms else ": they are folded, and methods that read their statistics cannot run"
    keep(f"teacher.file: {path.name} has {len(norms)} batch norms{named}{folded}")
    ours = any(entry.key == "kd_lightning" for entry in model.metadata_props)
    return FromOnnx(net, layout=layout, channel_order=channel_order, undo=(mean, std) if ours else None)


def converted(model: Any) -> nn.Module:
    """The torch network of an ONNX model: the only place that knows the converter."""
    package = _package("onnx2torch")
    warnings.filterwarnings("ignore", module=r"onnx2torch\.")  # of how it indexes, at each of its forward passes
    return package.convert(model)


def lift_constants(model: Any) -> None:
    """Turn the outputs of ``Constant`` nodes into initialisers: some exporters keep weights there."""
    onnx = _package("onnx")
    graph, kept = model.graph, []
    for node in graph.node:
        value = _value(node) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _value(node: Any) -> np.ndarray | None:
    onnx = _package("onnx")
    attribute = node.attribute[0]
    if attribute.name == "value":
        return np.array(onnx.numpy_helper.to_array(attribute.t))
    if attribute.name in ("value_float", "value_floats"):
        return np.array(onnx.helper.get_attribute_value(attribute), np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(onnx.helper.get_attribute_value(attribute), np.int64)
    return None


def cut_softmax(model: Any, path: Path) -> str:
    """Take ``Softmax`` or ``LogSoftmax`` off the end of the first output, so that logits are left.

    Returns:
        Which of the two it was; empty if none.

    Raises:
        TeacherError: the file ends in a sigmoid.
    """
    output = model.graph.output[0]
    made_by = {name: node for node in model.graph.node for name in node.output}
    last = made_by.get(output.name)
    while last is not None and last.op_type == "Identity":
        last = made_by.get(last.input[0])
    if last is not None and last.op_type == "Sigmoid":
        raise TeacherError(
            f"teacher.file: {path} ends in a sigmoid, whose outputs are not those of a softmax. {BLACK_BOX} "
            "teacher.outputs=sigmoid"
        )
    if last is None or last.op_type not in ("Softmax", "LogSoftmax"):
        return ""
    before = last.input[0]
    for node in list(model.graph.node):
        if node is last or (node.op_type == "Identity" and output.name in node.output):
            model.graph.node.remove(node)
    output.name = before
    return str(last.op_type)


def compare(path: Path, net: nn.Module, *, end: str) -> None:
    """Compare the torch network with the file on random images.

    Args:
        path: the file, which onnxruntime runs.
        net: its network, without the softmax at the file's end.
        end: that softmax: ``Softmax``, ``LogSoftmax`` or none.

    Raises:
        TeacherError: their answers differ, or are not (N, K).
    """
    runtime = _package("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    n, *shape = [size if isinstance(size, int) else None for size in taken.shape]
    x = torch.rand(n or TRIED, *(size or FREE for size in shape), generator=torch.Generator().manual_seed(0))
    told = torch.from_numpy(session.run(None, {taken.name: x.numpy()})[0])
    if told.dim() != 2 or len(told) != len(x):
        raise TeacherError(
            f"teacher.file: {path} answers {len(x)} images with {tuple(told.shape)}, expected a row of classes for each"
        )
    with torch.no_grad():
        own = net(x)
    if end:
        own = own.softmax(1) if end == "Softmax" else own.log_softmax(1)
    furthest = float((own - told).abs().max()) if own.shape == told.shape else float("nan")
    if not furthest <= FURTHEST:
        raise TeacherError(
            f"teacher.file: converted, {path} answers something else: they differ by {furthest:.2g}, at most "
            f"{FURTHEST:g} is allowed. {BLACK_BOX}"
        )


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise TeacherError(f"teacher.white=true needs {name}: {install('onnx')}") from error
