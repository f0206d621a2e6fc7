"""The teacher: read from a file, or trained once and kept; then handed out at the level that was agreed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_lightning.artifacts import Store, digest, file_digest, writing
from kd_lightning.data.dataset import Split
from kd_lightning.errors import TeacherError
from kd_lightning.fitting import Bench, Fitted, device_of, fit
from kd_lightning.inference import predict
from kd_lightning.methods.base import Teacher
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teacher.diagnose import diagnose
from kd_lightning.teacher.frozen import FrozenTeacher
from kd_lightning.teacher.query import QueryTeacher, answering
from kd_lightning.teacher.weights import load_weights
from kd_lightning.variant import variant


@dataclass(frozen=True)
class Obtained:
    """A teacher that is there.

    Args:
        net: the network, in eval mode.
        key: digest of what made it.
        seconds: its training took.
        settings: the ``teacher`` node of the composition.
        device: where it answers.
        store: where answers that were paid for are kept.
        evaluator: answers for measuring, out of a bucket of its own.
        report: of its training, if it was trained here.
    """

    net: Normalized
    key: str
    seconds: float
    settings: DictConfig
    device: str
    store: Store
    evaluator: QueryTeacher
    report: dict[str, Any]

    @property
    def white(self) -> bool:
        """Whether everything about it may be known."""
        return self.settings.access == "white"

    def hand_out(self) -> Teacher:
        """A fresh object at the agreed level, its counters at zero."""
        return FrozenTeacher(self.net) if self.white else _asked(self.net, self.settings)

    def answers(self, split: Split | None) -> Tensor | None:
        """Its outputs on a split for measuring: free at ``white``, else as far as ``teacher.eval_budget`` pays."""
        if split is None:
            return None
        if self.white:
            return predict(self.net, split.images, device=self.device)
        before = self.evaluator.asked_for_evaluation
        if before + len(split) > self.evaluator.eval_budget:
            return None

        def ask(folder: Path) -> None:
            answers = predict(self.evaluator.for_evaluation, split.images, device=self.device)  # type: ignore[arg-type]
            with writing(folder):
                save_file({"answers": answers}, folder / "answers.safetensors")

        folder = self.store.obtain("answers", self.answers_key(split), ask)
        self.evaluator.asked_for_evaluation = before + len(split)  # also where an earlier run paid
        return load_file(folder / "answers.safetensors")["answers"]

    def answers_key(self, split: Split) -> dict[str, Any]:
        """What determines its answers on a split."""
        pixels = hashlib.sha256(split.images.numpy().tobytes()).hexdigest()
        return {"teacher": self.key, "images": pixels, "version": 1}


def obtain_teacher(cfg: DictConfig, bench: Bench, train: Callable[..., Fitted] = fit) -> Obtained | None:
    """Load or train ``cfg.teacher``, and measure it where labels exist.

    Args:
        cfg: the composition.
        bench: what the run's fits share.
        train: called as :func:`~kd_lightning.fitting.fit` is.

    Raises:
        TeacherError: weights that do not fit, a teacher that knows nothing or is misread, or no data to train it on.
    """
    settings = cfg.teacher
    if settings.net is None:
        return None
    if settings.weights:
        net, key, seconds, report = *load_net(settings), 0.0, dict[str, Any]()
    else:
        net, key, seconds, report = _trained(cfg, bench, train)
    device = device_of(cfg)
    obtained = Obtained(net.eval(), key, seconds, settings, device, bench.store, _asked(net, settings), report)
    labelled = bench.dataset.val or bench.dataset.test
    if settings.check and obtained.white and labelled is not None:
        diagnose(obtained.net, labelled, task=bench.task, device=device)
    return obtained


def _asked(net: Normalized, settings: DictConfig) -> QueryTeacher:
    ask = answering(net, settings.access, decimals=settings.decimals, k=settings.k)
    return QueryTeacher(ask, access=settings.access, budget=settings.budget, eval_budget=settings.eval_budget)


def load_net(settings: DictConfig) -> tuple[Normalized, str]:
    """The network of a ``teacher`` node with its weights file, and its key."""
    net = Normalized(instantiate(settings.net), mean=settings.mean, std=settings.std, class_order=settings.class_order)
    load_weights(net, settings.weights)
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    kept = {k: plain[k] for k in ("net", "mean", "std", "class_order", "access", "decimals", "k")}
    return net, digest({**kept, "weights": file_digest(settings.weights)})


def teachers_own(cfg: DictConfig) -> DictConfig:
    """The composition by which the teacher of ``cfg`` is trained where it has no weights."""
    own = variant(cfg, {**cfg.teacher.fit, "student": cfg.teacher.net, "init": None})
    own.seed = cfg.teacher.seed
    return own


def _trained(
    cfg: DictConfig, bench: Bench, train: Callable[..., Fitted]
) -> tuple[Normalized, str, float, dict[str, Any]]:
    settings = cfg.teacher
    if bench.dataset.train is None:
        raise TeacherError(
            f"data={bench.dataset.name} has no training images to train a teacher on: "
            "give the teacher's weights with teacher.weights=FILE"
        )
    fitted = train(teachers_own(cfg), bench, phase="teacher")
    access = [settings.access, settings.decimals, settings.k] if settings.access != "white" else []
    return fitted.network, digest([fitted.key, *access]), fitted.seconds, fitted.report
