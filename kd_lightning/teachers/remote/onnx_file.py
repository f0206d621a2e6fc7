"""A network in an ONNX file as a black-box teacher, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_lightning.core.extras import install
from kd_lightning.core.sides import Size
from kd_lightning.core.strangers import in_a_line
from kd_lightning.errors import TeacherError
from kd_lightning.networks.onnx_network import Layout, Order
from kd_lightning.networks.outputs import as_logits, resized
from kd_lightning.store.files import file_digest
from kd_lightning.teachers.answer_types import Told
from kd_lightning.teachers.remote.function import Function


def onnx_teacher(
    file: str,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    access: Told = "logits",
    outputs: str = "logits",
    size: Size | None = None,
    layout: Layout = "nchw",
    channel_order: Order = "rgb",
    decimals: int | None = None,
    k: int = 5,
    max_batch: int = 500,
    price: float = 0.0,
) -> Function:
    """The teacher in an ONNX file whose first input is images, and whose first output is one row each.

    Args:
        file: the file. One that ``kd-export`` wrote normalises its images itself.
        num_classes: K.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, by which they are divided.
        access: what it tells: ``logits``, ``probs``, ``topk`` or ``label``.
        outputs: what its outputs are, see :func:`~kd_lightning.networks.outputs.as_logits`.
        size: height and width of its images, or one number for both; None for those of the data.
        layout: of its images: ``nchw``, or ``nhwc``.
        channel_order: of its images: ``rgb`` or ``bgr``.
        decimals: as for a function.
        k: as for a function.
        max_batch: as for a function.
        price: as for a function.

    Raises:
        TeacherError: onnxruntime is not installed, or the file is none that it reads.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise TeacherError(f"teacher=onnx needs onnxruntime: {install('export')}") from error
    path = Path(file).expanduser()
    if not path.is_file():
        raise TeacherError(f"teacher.file: there is no file {path}")
    try:
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are of a class of its own for each reason
        raise TeacherError(f"teacher.file: {path} is not an ONNX network: {in_a_line(error)}") from error
    taken = session.get_inputs()[0]
    ours = "kd_lightning" in session.get_modelmeta().custom_metadata_map
    shift, scale = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
    at_once = taken.shape[0] if isinstance(taken.shape[0], int) else max_batch

    def ask(images: np.ndarray) -> list[Any]:
        x = resized(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255, size)
        x = x if ours else (x - shift) / scale
        x = x.flip(1) if channel_order == "bgr" else x
        x = x.permute(0, 2, 3, 1) if layout == "nhwc" else x
        rows = []
        for part in x.split(at_once):
            short = at_once - len(part) if isinstance(taken.shape[0], int) else 0
            fed = torch.cat([part, part[-1:].expand(short, -1, -1, -1)]).contiguous()
            rows.append(torch.from_numpy(session.run(None, {taken.name: fed.numpy()})[0])[: len(part)])
        logits = as_logits(torch.cat(rows).float(), outputs)
        if access == "logits":
            return logits.tolist()
        if access == "label":
            return logits.argmax(1).tolist()
        probs = logits.softmax(1)
        if access == "probs":
            return probs.tolist()
        best = probs.topk(min(k, num_classes))
        return [dict(zip(c, p, strict=True)) for c, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "access": access,
        "decimals": decimals,
        "k": k,
        "max_batch": max_batch,
    }
    return Function(ask, name=f"onnx {path.name}", version=file_digest(path), price=price, **settings)
