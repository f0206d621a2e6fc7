"""The student's own files: weights beside everything needed to use them, without the trainer, or without torch."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.config.node import located
from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import Regression, task_of
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.results.run_index import read_result
from kd_lightning.store.artifacts import FORMAT_VERSION, refuse_format, write_json, writing

TRUSTED = ("kd_lightning.networks.", "torchvision.models.", "torch.nn.", "timm.")
CARD = ("network", "classes", "image_shape", "mean", "std")
IN_MEMORY, DATA_IN_MEMORY = "kd_lightning.api.held", "kd_lightning.api.held_data"
TOLERANCE = 1e-4
"""Largest difference of any answer between the student and its ONNX form."""


class Student(Normalized):
    """A trained network, its card (class names, image shape, metrics, what it was made from) and where it lay."""

    card: dict[str, Any]
    folder: Path


def save_student(network: nn.Module, folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``student.safetensors`` and ``student.json``.

    Args:
        network: the student.
        folder: where.
        card: ``network`` (its config), ``classes``, ``image_shape``, ``mean``, ``std`` and whatever else is known.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with writing(folder):
        metadata = {"format_version": str(FORMAT_VERSION), "classes": json.dumps(card["classes"])}
        save_file(state, folder / "student.safetensors", metadata=metadata)
    write_json(folder / "student.json", {"format_version": FORMAT_VERSION, **card})


def save_single(student: Student, file: Path) -> None:
    """Write a loaded student as one safetensors file, its card inside; :func:`load_student` reads it back."""
    state = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, file, metadata={"format_version": str(FORMAT_VERSION), "card": json.dumps(student.card)})


def load_student(path: str | Path, *, network: nn.Module | None = None, trust: bool = False) -> Student:
    """The student of a run folder: images (N, C, H, W) in [0, 1] to logits (N, K), in eval mode.

    Its card is at ``.card``: class names, image shape, metrics. Where the labels are numbers it answers (N, 1), their
    places in the range that the card gives, and ``tasks.task_of(card).numbers(answers)`` are the numbers themselves.

    Args:
        path: a run folder, any folder with ``student.safetensors`` and ``student.json``, or the one file that
            ``kd-export --safetensors`` writes.
        network: the student's network, which gets the weights; by default it is built as the card says.
        trust: build networks from anywhere. The card names the Python class of the network; by default only
            those of this package, torch, torchvision and timm are imported.

    Raises:
        UserError: no student there, another format version, an untrusted class, or weights that do not fit.
    """
    path = Path(path).expanduser()
    weights = path if path.is_file() else path / "student.safetensors"
    card = _card_inside(path) if path.is_file() else _card_of(path)
    where = path if path.is_file() else path / "student.json"
    refuse_format(card.get("format_version"), where, "run it anew, or use the version that wrote it")
    if missing := [key for key in CARD if key not in card]:
        raise UserError(f"the card of the student in {path} lacks {', '.join(missing)}: copy the run folder again")
    student = Student(
        _built(card, path, trust=trust) if network is None else network, mean=card["mean"], std=card["std"]
    )
    load_weights(student, weights)
    student.card, student.folder = card, path if path.is_dir() else path.parent
    return student.eval()


def _card_of(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of a finished run")
    try:
        result = read_result(folder)
    except (FileNotFoundError, UserError):
        result = {"status": "ok"}  # a student can be used without
    missing = [name for name in ("student.json", "student.safetensors") if not (folder / name).is_file()]
    if result["status"] == "failed" or (missing and result["status"] != "ok"):
        reason = (str(result.get("reason") or "").splitlines() or ["no reason given"])[0]
        raise UserError(f"{folder} holds no student, its run {result['status']}: {reason}")
    if missing:
        raise UserError(f"{folder} holds no student: {missing[0]} is missing. Name the folder of a finished run")
    try:
        card = json.loads((folder / "student.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'student.json'} cannot be read, perhaps half-written: {error}") from error
    if not isinstance(card, dict):
        raise UserError(f"{folder / 'student.json'} is not the card of a student")
    return card


def _card_inside(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as content:
            return json.loads((content.metadata() or {})["card"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file} is no student that kd-export wrote: name such a file, or the folder of a finished run"
        ) from error


def _built(card: Mapping[str, Any], path: Path, *, trust: bool) -> nn.Module:
    for target in _targets(card["network"]):
        if target == IN_MEMORY:
            raise UserError(f"{path}: its network was handed over in memory; load_student(..., network=YOURS) takes it")
        if not (trust or _trusted(target)):
            raise UserError(f"{path}: the network {target} is none of ours; load_student(..., trust=True) imports it")
    try:
        return instantiate(card["network"])
    except InstantiationException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path}: its network cannot be built here: {reason}") from error


def to_onnx(student: Student, file: Path, images: Tensor) -> float:
    """Write a loaded student as ONNX: ``images`` (N, C, H, W) in [0, 1], N free, to ``logits`` (N, K).

    Where the labels are numbers, to ``places`` (N, 1) in their range, which is part of the ``task`` in the metadata.
    These are ``classes``, ``task``, ``image_shape``, the metric it is judged by, ``teacher`` and the versions.

    Args:
        student: as :func:`load_student` gives it.
        file: where; nothing is written if the check fails.
        images: what the file is checked on, uint8 (N, C, H, W).

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
        raise UserError(f"ONNX needs {error.name}: pip install 'kd-lightning[export]'") from error
    student = student.cpu().eval()
    with warnings.catch_warnings(action="ignore"):  # torch's about itself
        try:
            program = torch.onnx.export(
                student,
                (images[:1].repeat(2, 1, 1, 1).float() / 255,),
                dynamo=True,
                input_names=["images"],
                output_names=[answer_name(student.card)],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
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


def _forget_where(model: Any) -> None:
    """Remove what torch notes of the exporting machine: source files with their paths, at every node and value."""
    graphs = [model.graph, *model.functions]
    for part in [*graphs, *(n for g in graphs for n in g.node), *(v for g in graphs for v in g.value_info)]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def answer_name(card: Mapping[str, Any]) -> str:
    """What a student's answers are called: ``logits``, or ``places`` of numbers in their range."""
    return "places" if isinstance(task_of(card), Regression) else "logits"


def _onnx_metadata(card: Mapping[str, Any]) -> dict[str, str]:
    task = task_of(card)
    return {
        "format_version": str(FORMAT_VERSION),
        "classes": json.dumps(card["classes"]),
        "image_shape": json.dumps(card["image_shape"]),
        "input": "images (N, C, H, W), grey or RGB, float32 in [0, 1]; the network normalises them itself",
        task.headline: json.dumps((card.get("metrics") or {}).get(f"test/{task.headline}")),
        "task": json.dumps(task.described()),
        "teacher": str(card.get("teacher") or ""),
        "network": json.dumps(card["network"]),
        "kd_lightning": version("kd_lightning"),
        "torch": torch.__version__,
    }


def _difference(student: nn.Module, onnxruntime: Any, content: bytes, images: Tensor) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    batches = [images[:1], *images[1:].split(250)]  # two sizes at least: the axis is free
    answers = [session.run(None, {"images": (x.float() / 255).numpy()})[0] for x in batches if len(x)]
    return float((torch.cat([torch.from_numpy(a) for a in answers]) - predict(student, images)).abs().max())


def trusted(node: Any) -> bool:
    """Whether a config builds nothing but networks of this package, torch, torchvision and timm."""
    return all(_trusted(target) for target in _targets(node))


def _targets(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _targets(value)
    if isinstance(node, Mapping) and "_target_" in node:
        yield node["_target_"]


def _trusted(target: str) -> bool:
    """Whether it is a network's class or maker; a dotted path through our modules may end anywhere."""
    if not target.startswith(TRUSTED):
        return False
    found = named(target)
    makes_networks = inspect.isclass(found) and issubclass(found, nn.Module)
    return makes_networks or (inspect.isfunction(found) and found.__module__.startswith(("torchvision.models", "timm")))


def named(target: str) -> Any:
    """What a config's ``_target_`` names.

    Raises:
        UserError: it is not installed, or not in this version.
    """
    try:
        return located(target)
    except Exception as error:  # whatever importing it raises
        raise UserError(f"there is no {target} here: another version of its package has made this run") from error
