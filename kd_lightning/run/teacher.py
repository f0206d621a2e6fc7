"""The teacher: loaded from a file, trained once and stored, or remote; given to fits at its access level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.config.composition import TUNE, Composition, TeacherSettings, Training
from kd_lightning.config.node import Node
from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.tasks import Task, kept
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.distributed import collectives, decisions
from kd_lightning.engine.fit import FitResult, RunContext, fit
from kd_lightning.errors import TeacherError
from kd_lightning.methods.base.protocols import Teacher
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.student_files import load_student
from kd_lightning.run.teacher_check import diagnose, recognise, refuse_constant
from kd_lightning.run.teacher_net import code_of, load_net
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import digest
from kd_lightning.teachers.answer_types import Described, TeacherClient
from kd_lightning.teachers.black_box import QueryClient, QueryTeacher
from kd_lightning.teachers.remote.client import LedgerClient, QueryTerms
from kd_lightning.teachers.remote.function import Function
from kd_lightning.teachers.remote.local import LocalAsker
from kd_lightning.teachers.white_box import FrozenTeacher

DRIFT_CHECKS = 16
"""Images that a remote teacher is asked about again to detect drift, unless the settings say otherwise."""
AT_ONCE = 5000
"""Images of one query to a local network: large, because the ledger waits for the disk in every query."""


@dataclass(frozen=True)
class TeacherHandle:
    """A teacher that was loaded, trained or connected to.

    Args:
        net: the network, in eval mode; None for a remote teacher.
        key: digest of what it was made of and of what its answers hold.
        seconds: duration of its training; 0 if it was not trained here.
        settings: the ``teacher`` node of the composition.
        device: the device it runs on.
        report: the report of its training, if it was trained here.
        described: its description of itself; None at ``white``.
        door: the client that asks it, on the first rank only; None at ``white``.
        reference: a network that is measured in its place.
        kept: the name of its artefact, if it was trained here.
    """

    net: Normalized | None
    key: str
    seconds: float
    settings: TeacherSettings
    device: str
    report: dict[str, Any]
    described: Described | None = None
    door: QueryClient | None = None
    reference: nn.Module | None = None
    kept: str | None = None

    @property
    def white(self) -> bool:
        """Whether it is white-box: weights, features and gradients may be used."""
        return self.described is None

    def hand_out(self) -> Teacher:
        """A fresh teacher at the access level of the settings, with counters at zero."""
        if self.described is None:
            assert self.net is not None
            return FrozenTeacher(self.net)
        own = self.settings
        return QueryTeacher(
            self.door, self.described, smoothing=own.smoothing, min_coverage=own.min_coverage, budget=own.budget
        )

    def answers(self, split: Split | None, task: Task) -> Tensor | None:
        """What is kept of its outputs on a split, for metrics; None if they would be over ``teacher.eval_budget``."""
        if split is None:
            return None
        if (net := self.reference or (self.net if self.white else None)) is not None:
            return predict(net, split.images, keep=kept(task), device=self.device)
        if not self.settings.eval_budget:
            return None
        client = self.hand_out()
        assert isinstance(client, QueryTeacher)
        told = client.for_evaluation(split.images)
        if told is None:
            return None
        if len(told.positions) < len(split):
            if collectives.rank() == 0:
                print(f"the teacher has no answer to {len(split) - len(told.positions)} of {len(split)} images that it "
                      "was to be measured on: its metrics stay empty")  # fmt: skip
            return None
        return told.answers

    def spent(self) -> dict[str, dict[str, Any]]:
        """What this run used and paid, by budget; empty at ``white``."""
        if self.white:
            return {}
        spent = decisions.decided(lambda: cast(QueryClient, self.door).spent())
        return {bucket: asdict(account) for bucket, account in spent.items()}

    def told(self, measured: bool, fits: Mapping[str, FitResult]) -> dict[str, Any]:
        """Entries of the result: its description, the origin of its metrics, its answers; empty at ``white``.

        Args:
            measured: whether it has metrics.
            fits: the run's fits, by name.
        """
        if self.described is None:
            return {}
        by = "reference" if self.reference is not None else "paid"
        return {
            "asked": asdict(self.described),
            "teacher_metrics": by if measured else None,
            "answers": {name: f.report["answers"] for name, f in fits.items() if "answers" in f.report},
        }


def obtain_teacher(
    composition: Composition, bench: RunContext, train: Callable[..., FitResult] = fit
) -> TeacherHandle | None:
    """Load, train or connect to the teacher; a white-box teacher is checked on labelled images if there are any.

    Args:
        composition: its ``teacher`` is obtained.
        bench: what the run's fits share.
        train: called like :func:`~kd_lightning.engine.fit.fit`.

    Raises:
        TeacherError: the weights do not fit, the teacher is near chance or misconfigured, there are no data to train
            it on, or its answers are not those of the settings.
    """
    settings = composition.teacher
    if settings is None:
        return None
    device = composition.device
    net: Normalized | None = None
    key, seconds, report, kept = "", 0.0, dict[str, Any](), None
    if settings.net is not None:
        if settings.weights not in (None, TUNE):
            net, key = load_net(settings)
            if settings.check:
                recognise(net, _some_images(bench.dataset), bench.task, device=device)
        else:
            net, key, seconds, report, kept = _trained(settings, bench, train)
        net.eval()
        if settings.access == "white":
            dataset = bench.dataset  # the test of two domains is not of the images it knows
            labelled = dataset.val or (dataset.test if dataset.unlabelled is None else dataset.train)
            if settings.check and labelled is not None and labelled.labelled:
                diagnose(net, labelled, task=bench.task, device=device, trained=kept is not None)
            if settings.check and kept is None:
                refuse_constant(net, _some_images(bench.dataset), device=device)
            return TeacherHandle(net, key, seconds, settings, device, report, kept=kept)
    door: LedgerClient | None = None

    def open_door() -> Described:
        nonlocal door
        client = (
            cast(Node, settings.client).build() if net is None else _at_home(settings, net, key, bench.dataset, device)
        )
        if isinstance(client, Function):
            client.name_classes(bench.dataset.classes)
            if isinstance(bench.task, MultiLabel):
                client.expect_several()
        _refuse_another(client.describe(), settings, bench.dataset)
        file = settings.ledger or Store(composition.artifacts.root).root / "ledger.sqlite"
        pace = settings.pace.build()
        door = LedgerClient(client, Path(file), _terms(settings, bench), pace=pace, at_home=net is not None)
        return door.described

    described = decisions.decided(open_door)
    said = asdict(described)
    key = digest(
        [
            key,
            *(said[k] for k in ("name", "version", "access", "decimals", "k")),
            *(["several"] if described.several else []),
            settings.smoothing,
            *code_of(settings),
        ]
    )
    reference = _reference(settings) if settings.reference else None
    return TeacherHandle(net, key, seconds, settings, device, report, described, door, reference, kept)


def obtain_source_teacher(
    training: Training, composition: Composition, bench: RunContext, train: Callable[..., FitResult] = fit
) -> TeacherHandle | None:
    """The source's own teacher of a training; None where the source asks the run's.

    Args:
        training: its ``source_teacher`` is obtained.
        composition: the run's composition.
        bench: what the run's fits share.
        train: called like :func:`~kd_lightning.engine.fit.fit`.

    Raises:
        TeacherError: see :func:`obtain_teacher`.
    """
    if training.source_teacher is None:
        return None
    return obtain_teacher(composition.derive(teacher=training.source_teacher), bench, train)


def _terms(settings: TeacherSettings, bench: RunContext) -> QueryTerms:
    drift_checks = settings.drift_checks
    if drift_checks is None:
        drift_checks = DRIFT_CHECKS if settings.net is None else 0
    return QueryTerms(
        run=bench.run,
        budget=settings.budget,
        total_budget=settings.total_budget,
        eval_budget=settings.eval_budget,
        drift_checks=drift_checks,
        anew=bench.store.anew(),
    )


def _at_home(settings: TeacherSettings, net: Normalized, key: str, dataset: Dataset, device: str) -> TeacherClient:
    described = Described(
        name=f"{type(net.net).__name__}-{key}",
        version=f"abstains below {settings.abstain_below}" if settings.abstain_below is not None else "1",
        access=cast(Any, settings.access),
        num_classes=dataset.task.outputs,
        max_batch=AT_ONCE,
        decimals=settings.decimals,
        k=settings.k,
        price=settings.price,
        several=isinstance(dataset.task, MultiLabel),
    )
    return LocalAsker(net, described, abstain_below=settings.abstain_below, device=device)


def _refuse_another(described: Described, settings: TeacherSettings, dataset: Dataset) -> None:
    channels, height, width = dataset.image_shape
    if described.access != settings.access:
        raise TeacherError(f"{described.name} tells {described.access}: set teacher.access={described.access}")
    if described.num_classes != dataset.task.outputs:
        raise TeacherError(
            f"{described.name} knows {described.num_classes} classes, data={dataset.name} has {dataset.task.outputs}"
        )
    if described.image is not None and tuple(described.image) != (height, width, channels):
        raise TeacherError(
            f"{described.name} takes images of {'x'.join(map(str, described.image))} (height, width, channels), "
            f"data={dataset.name} has {height}x{width}x{channels}: set data.size and data.channels"
        )


def _reference(settings: TeacherSettings) -> nn.Module:
    """Load the network of ``teacher.reference``: weights of ``teacher.net``, else a run's student."""
    assert settings.reference is not None
    if settings.net is None:
        return load_student(settings.reference)
    return load_net(replace(settings, weights=settings.reference))[0].eval()


def _some_images(dataset: Dataset, n: int = 200) -> Tensor:
    """Up to ``n`` images uint8 (N, C, H, W) to see answers to: of the data, or noise where there are none."""
    if kept(dataset.task) is not None:
        n = 8  # maps of outputs are large
    split = dataset.val or dataset.test or dataset.train
    rng = torch.Generator().manual_seed(0)
    if split is not None:
        return split.images[torch.randperm(len(split), generator=rng)[:n]]
    return torch.randint(256, (n, *dataset.image_shape), generator=rng, dtype=torch.uint8)


def _trained(
    settings: TeacherSettings, bench: RunContext, train: Callable[..., FitResult]
) -> tuple[Normalized, str, float, dict[str, Any], str]:
    if bench.dataset.train is None:
        raise TeacherError(
            f"data={bench.dataset.name} has no training images to train a teacher on: "
            "give the teacher's weights with teacher.weights=FILE"
        )
    if not bench.dataset.train.labelled:
        raise TeacherError(
            f"data={bench.dataset.name} has no labels to train a teacher on: give the teacher's weights with "
            "teacher.weights=FILE"
        )
    assert settings.training is not None
    fitted = train(settings.training, bench, phase="teacher")
    return fitted.network, digest([fitted.key]), fitted.seconds, fitted.report, fitted.folder.name
