"""Loads a finished run: its result, configuration, student, teacher, generator and data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kd_lightning.config.record import resolved
from kd_lightning.core import strangers
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.tasks import Regression, Task, task_of
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.domains import moved_to
from kd_lightning.data.load import refuse_other_classes
from kd_lightning.engine.checkpoint_reader import read_checkpoint
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights, refuse_misfits
from kd_lightning.results import trusted
from kd_lightning.results.run_index import load_yaml, pick, read_result
from kd_lightning.results.student_files import DATA_IN_MEMORY, Student, load_student, room_for
from kd_lightning.store.artifacts import NAME, Store

RUNS = "runs"
PATHS = ("root", "file", "files", "names", "test", "ground", "textures")
"""Settings of data sets that name files or folders."""


@dataclass(frozen=True)
class Finished:
    """A run that finished well.

    Args:
        folder: the run folder.
        result: content of its ``result.json``.
        cfg: its configuration, as plain values.
        student: as :func:`~kd_lightning.results.student_files.load_student` returns it.
        trust: whether its data and networks may be built by code outside this package.
    """

    folder: Path
    result: dict[str, Any]
    cfg: dict[str, Any]
    student: Student
    trust: bool = False

    @property
    def task(self) -> Task:
        """What its labels are, from the student's card."""
        return task_of(self.student.card)

    @property
    def classes(self) -> list[str]:
        """Class names; their positions are the labels.

        Raises:
            UserError: the labels are numbers, or an image has several.
        """
        if isinstance(self.task, MultiLabel):
            raise UserError(
                f"{self.folder}: its images have several labels, run.student.card['classes'], each with a probability "
                "of its own: answers(...).sigmoid() gives them, and plots/average_precision.png shows how good they are"
            )
        if isinstance(self.task, Regression):
            raise UserError(
                f"{self.folder}: its labels are numbers ({self.task.unit}), not classes; run.task.numbers(answers) "
                "gives the student's, and plots/numbers_labels.png shows them"
            )
        return self.student.card["classes"]


def newest_run(top: str | Path | None = None) -> Path:
    """The folder of the run that finished last below ``top``.

    Args:
        top: default is ``runs`` here, or in the nearest parent folder that has one.

    Raises:
        UserError: there is none.
    """
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    finished = [path for path in folder.rglob("result.json") if (path.parent / "student.json").is_file()]
    if not finished:
        raise UserError(f"no finished run below {folder}: run kd-lightning there, or name a run folder")
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def newest_sweep(top: str | Path | None = None) -> Path:
    """The folder of the last sweep below ``top`` (default as in :func:`newest_run`), else ``top`` itself."""
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    sweeps = [path for path in (folder / "sweeps").glob("*") if path.is_dir()]
    return max(sweeps, key=lambda path: path.stat().st_mtime, default=folder)


def _runs_near(here: Path) -> Path:
    return next((folder / RUNS for folder in (here, *here.parents) if (folder / RUNS).is_dir()), here / RUNS)


def open_run(folder: str | Path, *, network: nn.Module | None = None, trust: bool = False) -> Finished:
    """Read a run folder.

    Args:
        folder: of a run that finished well.
        network: the student's network, if it was passed to ``distill`` in memory; it receives the weights.
        trust: allow data and networks from outside this package, and thereby run code that the folder names.

    Raises:
        UserError: no such folder, no result or an incomplete one, a failed run, another format version.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of a finished run")
    try:
        result = read_result(folder)
    except FileNotFoundError:
        raise UserError(f"{folder} has no result.json: its run was killed, is still at work, or is none") from None
    student = load_student(folder, network=network, trust=trust)
    return Finished(folder, result, _composition(folder, trust=trust), student, trust)


def _composition(folder: Path, *, trust: bool) -> dict[str, Any]:
    """The configuration of a run, as plain values.

    Raises:
        UserError: it cannot be read, or contains interpolations and is not trusted.
    """
    path = folder / ".hydra" / "config.yaml"
    tree = strangers.read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no composition")
    if trust:
        with strangers.reading(path, said=f"{path} cannot be resolved here"):
            return resolved(tree)
    advice = "an older kd_lightning left it; trust=True (--trust) resolves it, or run it again"
    with strangers.reading(path, said=f"{path} is no composition of plain values", advice=advice):
        strangers.refuse_interpolations(tree)
    return tree


def _part(run: Finished, key: str) -> Any:
    """A part of the composition, as plain data; None if it has none."""
    return pick(run.cfg, *key.split("."))


@contextmanager
def _building(run: Finished, what: str) -> Iterator[None]:
    """Turn a failure to build a part, or a lack of trust, into one line."""
    where = f"{run.folder}: its {what}"
    try:
        with strangers.reading(run.folder / ".hydra" / "config.yaml", said=f"{where} cannot be built here"):
            yield
    except trusted.Untrusted as error:
        raise UserError(f"{where}: {error}; trust=True (--trust) builds it all the same") from error


def own_store() -> Store:
    """The reader's own store: an untrusted configuration must not decide where files are written."""
    return Store(os.environ.get("KD_ARTIFACTS") or None)


def data_of(run: Finished) -> Dataset:
    """The data set of a run; of two domains, with the test of the second.

    Raises:
        UserError: it is not available here, or loaded by code outside this package (``open_run(..., trust=True)``).
    """
    load = _part(run, "data.load")
    if isinstance(load, dict) and load.get("_target_") == DATA_IN_MEMORY:
        raise UserError(f"{run.folder}: its data were handed over in memory and are not kept")
    if isinstance(load, dict):
        load = {key: found_again(run, value) if key in PATHS else value for key, value in load.items()}
    with _building(run, "data"):
        dataset = trusted.data(load, trust=run.trust, store=own_store())
        if not isinstance(dataset, Dataset):
            raise TypeError(f"it makes a {type(dataset).__name__}, expected a data set")
        refuse_other_classes(dataset, _part(run, "data.num_classes"))
    if not isinstance(target := _part(run, "source.target"), dict):
        return dataset
    with _building(run, "source.target"):
        plain = {key: value for key, value in target.items() if key != "_partial_"}
        return moved_to(dataset, trusted.data(plain, trust=run.trust, store=own_store(), val=0))


def found_again(run: Finished, path: Any) -> Any:
    """A path of a run's composition, from wherever it is read: as it is, else below where the run was started.

    A relative path is looked for in the folder that the run was started in, and in those that hold the run folder,
    which may have been moved with its data. What is found nowhere stays as it is.
    """
    if not isinstance(path, str) or not path or os.path.isabs(os.path.expanduser(path)) or os.path.exists(path):
        return path
    started = pick(load_yaml(run.folder / ".hydra" / "hydra.yaml"), "hydra", "runtime", "cwd")
    bases = [*([Path(started)] if isinstance(started, str) else []), *run.folder.resolve().parents[:-1]]
    steady = re.split(r"[*?\[]", path)[0]  # of a pattern, the part before its first sign
    return next((str(base / path) for base in bases if steady and (base / steady).exists()), path)


def real_images(run: Finished) -> Split:
    """The images a run was evaluated on: its data's test part, else the validation part.

    Raises:
        UserError: as for :func:`data_of`, or the data have neither.
    """
    dataset = data_of(run)
    split = dataset.test or dataset.val
    if split is None:
        raise UserError(f"{run.folder}: its data ({dataset.name}) hold no test images")
    return split


def load_teacher(run: Finished) -> Normalized:
    """The teacher of a run, from its weights file or from the store.

    Raises:
        UserError: the run had none or a query-only one, its files are missing, or it cannot be built here.
    """
    settings = _part(run, "teacher")
    if not isinstance(settings, dict) or (not settings.get("net") and not settings.get("client")):
        raise UserError(f"{run.folder}: its composition has no teacher (teacher=none)")
    if settings.get("access") != "white":
        raise UserError(f"{run.folder}: its teacher only answers (teacher.access={settings.get('access')})")
    with _building(run, "teacher"):
        file, own = Path(str(found_again(run, settings.get("weights")))).expanduser(), settings
        if settings.get("weights") in (None, "", "tune"):
            file, own = _kept_teacher(run), {**_part(run, "data"), "class_order": None}
        net = trusted.network(settings["net"], trust=run.trust, most=room_for(file) if file.is_file() else None)
        network = Normalized(
            net,
            mean=own["mean"],
            std=own["std"],
            class_order=own.get("class_order"),
            outputs=own.get("outputs") or "logits",
            size=own.get("size"),
        )
        if file.name != "own":
            load_weights(network, file)
        return network.eval()


def _kept_teacher(run: Finished) -> Path:
    """The weights of a teacher that the run trained, in the reader's store or in the run's."""
    name = run.result.get("teacher_kept")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{run.folder}: its result does not say which teacher was kept: an older kd_lightning wrote it")
    stores = own_store().root, Path(str(_part(run, "artifacts.root"))).expanduser()
    for store in stores:
        if (file := store / name / "student.safetensors").is_file():
            return file
    raise UserError(
        f"{run.folder}: its teacher is not kept in {stores[0]} ({name}): set KD_ARTIFACTS to where the run kept it, or "
        "train it again by the same command with artifacts.reuse=false"
    )


def load_generator(run: Finished) -> nn.Module:
    """The generator of a run as training left it: latents (N, latent) to images (N, C, H, W) in data units.

    Raises:
        UserError: the run trained none, its checkpoint is missing or unreadable, or holds another generator.
    """
    made_of, file = _part(run, "method.generator"), run.folder / "last.ckpt"
    if made_of is None:
        raise UserError(f"{run.folder}: its method ({run.result.get('method')}) has no generator")
    content = read_checkpoint(file)
    with _building(run, "generator"):
        generator = trusted.network(made_of, trust=run.trust, most=room_for(file))
    state = {
        name.removeprefix("generator."): value
        for name, value in content["state_dict"].items()
        if name.startswith("generator.")
    }
    if not state:
        raise UserError(f"{file} holds no generator: it is the checkpoint of another method")
    wanted = generator.state_dict()
    if state.keys() != wanted.keys():
        name = min(state.keys() ^ wanted.keys())
        raise UserError(
            f"{file} holds another generator than its composition says: "
            f"{name} is only in {'the checkpoint' if name in state else 'the composition'}"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{file} holds a generator of other widths: {name} is {tuple(value.shape)}, "
                f"the composition says {tuple(wanted[name].shape)}"
            )
    refuse_misfits(state, wanted, file, into="the generator")
    generator.load_state_dict(state)
    return generator.requires_grad_(False)
