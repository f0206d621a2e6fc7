"""A loaded student as an ONNX file, compared with the student before it is written."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.extras import install
from kd_lightning.core.file_format import FORMAT_VERSION
from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Regression, Task, kept, task_of
from kd_lightning.errors import UserError
from kd_lightning.results.student_files import Student
from kd_lightning.store.files import writing

TOLERANCE = 1e-4
"""Largest difference of any answer allowed between a student and its ONNX form."""


def to_onnx(student: Student, file: Path, images: Tensor) -> float:
    """Write a loaded student as ONNX: ``images`` (N, C, H, W) in [0, 1], N free, to ``logits`` (N, K).

    For segmentation H and W are free, too, and logits are (N, K, H, W).

    For regression, to ``places`` (N, 1) in the range that is part of ``task`` in the metadata. The metadata are
    ``classes``, ``task``, ``image_shape``, the headline metric, ``teacher`` and the versions.

    Args:
        student: as :func:`load_student` returns it.
        file: to write; not written if the check fails.
        images: for the check, uint8 (N, C, H, W).

    Returns:
        The largest difference of any answer between torch and onnxruntime.

    Raises:
        UserError: a package is missing, the network has no ONNX form, or the two differ by ``TOLERANCE`` or more.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch exports through it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: {install('export')}") from error
    student = student.cpu().eval()
    with warnings.catch_warnings(action="ignore"):  # torch's own warnings
        try:
            program = torch.onnx.export(
                student,
                (images[:1].repeat(2, 1, 1, 1).float() / 255,),
                dynamo=True,
                input_names=["images"],
                output_names=[answer_name(student.card)],
                dynamic_shapes=(_free(student.card),),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(
                f"this network has no ONNX form: {str(error.__cause__ or error).splitlines()[0]}"
            ) from error
    assert program is not None
    model = program.model_proto
    _forget_where(model)
    onnx.helper.set_model_props(model, _onnx_metadata(student.card))
    content = model.SerializeToString()
    difference = _difference(student, onnxruntime, content, images)
    if not difference < TOLERANCE:
        raise UserError(
            f"{file} is not written: its {answer_name(student.card)} differ from the student's by {difference:.1e}, "
            f"less than {TOLERANCE:.0e} is wanted"
        )
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    return difference


def _free(card: Mapping[str, Any]) -> dict[int, Any]:
    """The sides of a batch of images that stay free."""
    if not isinstance(task_of(card), Segmentation):
        return {0: torch.export.Dim("batch")}
    return {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}


def _forget_where(model: Any) -> None:
    """Remove what torch notes of the exporting machine: paths of source files, at every node and value."""
    graphs = [model.graph, *model.functions]
    for part in [*graphs, *(n for g in graphs for n in g.node), *(v for g in graphs for v in g.value_info)]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def answer_name(card: Mapping[str, Any]) -> str:
    """Name of a student's output: ``logits``, or ``places`` for regression."""
    return "places" if isinstance(task_of(card), Regression) else "logits"


def _onnx_metadata(card: Mapping[str, Any]) -> dict[str, str]:
    task = task_of(card)
    return {
        "format_version": str(FORMAT_VERSION),
        "classes": json.dumps(card["classes"]),
        "image_shape": json.dumps(card["image_shape"]),
        "input": "images (N, C, H, W), grey or RGB, float32 in [0, 1]; the network normalises them itself",
        "input_dtype": "float32",
        "input_range": "[0, 1]",
        "input_size": "x".join(map(str, card["image_shape"][1:])),
        "input_resize": card.get("resize", "crop"),
        task.headline: json.dumps((card.get("metrics") or {}).get(f"test/{task.headline}")),
        "output": _meaning(task),
        "task": json.dumps(task.described()),
        "teacher": str(card.get("teacher") or ""),
        "network": json.dumps(card["network"]),
        "kd_lightning": version("kd_lightning"),
        "torch": torch.__version__,
    }


def _meaning(task: Task) -> str:
    """What a student's answers are, for people."""
    if isinstance(task, Regression):
        return f"places in the range of the labels: 0 is {task.low:g}, 1 is {task.high:g} {task.unit}".rstrip()
    if isinstance(task, MultiLabel):
        return "logits, a sigmoid of each is the probability of that label"
    return "logits, a softmax over classes makes them probabilities"


def _difference(student: Student, onnxruntime: Any, content: bytes, images: Tensor) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    batches = [images[:1], *images[1:].split(250)]  # at least two sizes, because N is free
    if kept(task_of(student.card)) is not None:  # so are height and width
        high, wide = images.shape[2:]
        batches = [*images[:32].split(8), images[:2, :, : high - high // 4, : wide - wide // 3]]
    largest = 0.0
    for x in batches:
        if len(x):
            answers = session.run(None, {"images": (x.float() / 255).numpy()})[0]
            largest = max(largest, float((torch.from_numpy(answers) - predict(student, x)).abs().max()))
    return largest
