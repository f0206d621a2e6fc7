"""A run that ended well, read back: its result, composition, student, generator and data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from kd_lightning.config import resolvers
from kd_lightning.config.check import examined
from kd_lightning.config.composition import Composition
from kd_lightning.config.record import chosen, is_mapping, read_record
from kd_lightning.core.tasks import Regression, Task, task_of
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.load import dataset_digest
from kd_lightning.engine.checkpoint_reader import read_checkpoint
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import Bench, build_network, fit_config
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.results.run_index import read_result
from kd_lightning.results.student_files import DATA_IN_MEMORY, Student, load_student, named, trusted
from kd_lightning.run.teacher import load_net
from kd_lightning.store.artifacts import Store
from kd_lightning.tracking.backends import Boards

RUNS = "runs"


@dataclass(frozen=True)
class Finished:
    """A run that ended well.

    Args:
        folder: the run folder.
        result: what its ``result.json`` holds.
        cfg: the composition it ran; interpolations resolve when read.
        student: as :func:`~kd_lightning.results.student_files.load_student` gives it.
        trust: whether its data and networks may be built by anybody's code.
    """

    folder: Path
    result: dict[str, Any]
    cfg: Any
    student: Student
    trust: bool = False

    @property
    def task(self) -> Task:
        """What the student's answers mean."""
        return task_of(self.student.card)

    @property
    def classes(self) -> list[str]:
        """Class names; their positions are the labels.

        Raises:
            UserError: the labels are numbers.
        """
        if isinstance(self.task, Regression):
            raise UserError(
                f"{self.folder}: its labels are numbers ({self.task.unit}), not classes; run.task.numbers(answers) "
                "gives the student's, and plots/numbers_labels.png shows them"
            )
        return self.student.card["classes"]


def newest_run(top: str | Path | None = None) -> Path:
    """The folder of the run that finished last below ``top``.

    Args:
        top: default is ``runs`` here, or in the nearest folder above that has one.

    Raises:
        UserError: there is none.
    """
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    finished = [path for path in folder.rglob("result.json") if (path.parent / "student.json").is_file()]
    if not finished:
        raise UserError(f"no finished run below {folder}: run kd-lightning there, or name a run folder")
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def newest_sweep(top: str | Path | None = None) -> Path:
    """The folder of the last sweep below ``top`` (default as for :func:`newest_run`); ``top`` itself where none is."""
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    sweeps = [path for path in (folder / "sweeps").glob("*") if path.is_dir()]
    return max(sweeps, key=lambda path: path.stat().st_mtime, default=folder)


def _runs_near(here: Path) -> Path:
    return next((folder / RUNS for folder in (here, *here.parents) if (folder / RUNS).is_dir()), here / RUNS)


def open_run(folder: str | Path, *, network: nn.Module | None = None, trust: bool = False) -> Finished:
    """Read a run folder.

    Args:
        folder: of a run that ended well.
        network: the student's network, where it was handed to ``distill`` in memory; it gets the weights.
        trust: let its composition name data and networks that are none of ours, and so run anybody's code.

    Raises:
        UserError: no such folder, no result or a half-written one, a failed run, another format version.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of a finished run")
    try:
        result = read_result(folder)
    except FileNotFoundError:
        raise UserError(f"{folder} has no result.json: its run was killed, is still at work, or is none") from None
    student = load_student(folder, network=network, trust=trust)
    resolvers.register()
    path = folder / ".hydra" / "config.yaml"
    cfg = read_record(path)
    if not is_mapping(cfg):
        raise UserError(f"{path} is no composition")
    return Finished(folder, result, cfg, student, trust)


def data_of(run: Finished) -> Dataset:
    """The data set that a run was made with.

    Raises:
        UserError: it is not here, or is loaded by code that is none of ours (see ``open_run(..., trust=True)``).
    """
    target = str(chosen(run.cfg, "data.load._target_"))
    if target == DATA_IN_MEMORY:
        raise UserError(f"{run.folder}: its data were handed over in memory and are not kept")
    if not (run.trust or _loads_our_data(target)):
        raise UserError(f"{run.folder}: its data come from {target}, which is none of ours; trust=True runs it")
    return load_data(_composition(run).data, Store(run.cfg.artifacts.root))


def _composition(run: Finished) -> Composition:
    _, composition = examined(run.cfg)
    if composition is None:
        raise UserError(f"{run.folder}: its composition cannot be read")
    return composition


def _loads_our_data(target: str) -> bool:
    ours = "kd_lightning.data.datasets."
    if not target.startswith(ours):
        return False
    found = named(target)
    return inspect.isfunction(found) and found.__module__.startswith(ours)


def real_images(run: Finished) -> Split:
    """The images a run was judged by: its data's test part, else the validation part.

    Raises:
        UserError: as for :func:`data_of`, or the data have neither.
    """
    dataset = data_of(run)
    split = dataset.test or dataset.val
    if split is None:
        raise UserError(f"{run.folder}: its data ({dataset.name}) hold no test images")
    return split


def load_teacher(run: Finished) -> Normalized:
    """The teacher of a run, from its weights file or from where the run kept what it trained.

    Raises:
        UserError: it had none, no more than answers may be had of it, it is no longer there or cannot be built here.
    """
    settings = run.cfg.teacher
    if settings.net is None and settings.get("asker") is None:
        raise UserError(f"{run.folder}: its composition has no teacher (teacher=none)")
    if settings.access != "white":
        raise UserError(f"{run.folder}: its teacher only answers (teacher.access={settings.access})")
    made_of = chosen(run.cfg, "teacher")
    if not (run.trust or (trusted(made_of["net"]) and _is_our_method(made_of["fit"]["method"]["_target_"]))):
        raise UserError(f"{run.folder}: its teacher {made_of['net']['_target_']} is none of ours; trust=True builds it")
    teacher = _composition(run).teacher
    assert teacher is not None
    if teacher.weights:
        return load_net(teacher)[0].eval()
    store, own = Store(run.cfg.artifacts.root), teacher.training
    assert own is not None
    dataset = data_of(run)
    bench = Bench(store, dataset, dataset_digest(dataset), dataset.task, Boards())
    folder = store.path("fit", fit_config(own, bench, "none"))
    if not (folder / "student.safetensors").is_file():
        raise UserError(
            f"{run.folder}: its teacher is not kept in {store.root}: set KD_ARTIFACTS to where the run kept it, or "
            "train it again by the same command with artifacts.reuse=false"
        )
    network = build_network(own)
    load_weights(network, folder / "student.safetensors")
    return network.eval()


def _is_our_method(target: str) -> bool:
    return target.startswith("kd_lightning.methods.") and inspect.isclass(named(target))


def load_generator(run: Finished) -> nn.Module:
    """The generator of a run as training left it: latents (N, latent) to images (N, C, H, W) in data units.

    Raises:
        UserError: the run trained none, its checkpoint is missing or unreadable, or holds another generator.
    """
    made_of = chosen(run.cfg, "method.generator")
    if made_of is None:
        raise UserError(f"{run.folder}: its method ({run.result.get('method')}) has no generator")
    if not (run.trust or trusted(made_of)):
        raise UserError(f"{run.folder}: its generator {made_of.get('_target_')} is none of ours; trust=True builds it")
    try:
        generator: nn.Module = instantiate(made_of)
    except InstantiationException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{run.folder}: its generator cannot be built here: {reason}") from error
    state = {
        name.removeprefix("generator."): value
        for name, value in read_checkpoint(run.folder / "last.ckpt")["state_dict"].items()
        if name.startswith("generator.")
    }
    if not state:
        raise UserError(f"{run.folder / 'last.ckpt'} holds no generator: it is the checkpoint of another method")
    wanted = generator.state_dict()
    if state.keys() != wanted.keys():
        name = min(state.keys() ^ wanted.keys())
        raise UserError(
            f"{run.folder / 'last.ckpt'} holds another generator than its composition says: "
            f"{name} is in {'the checkpoint' if name in state else 'the composition'} alone"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{run.folder / 'last.ckpt'} holds a generator of other widths: {name} is {tuple(value.shape)}, "
                f"the composition says {tuple(wanted[name].shape)}"
            )
    generator.load_state_dict(state)
    return generator.requires_grad_(False)
