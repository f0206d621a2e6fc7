"""The teacher: read from a file, or trained once and kept; then handed out at the level that was agreed."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from kd_lightning.artifacts import digest, file_digest
from kd_lightning.data.dataset import Split
from kd_lightning.errors import TeacherError
from kd_lightning.fitting import Bench, device_of, fit
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
    """

    net: Normalized
    key: str
    seconds: float
    settings: DictConfig
    device: str

    @property
    def white(self) -> bool:
        """Whether everything about it may be known."""
        return self.settings.access == "white"

    def hand_out(self) -> Teacher:
        """A fresh object at the agreed level, its counters at zero."""
        s = self.settings
        if self.white:
            return FrozenTeacher(self.net)
        ask = answering(self.net, s.access, decimals=s.decimals, k=s.k)
        return QueryTeacher(ask, access=s.access, budget=s.budget, eval_budget=s.eval_budget)

    def answers(self, split: Split | None) -> Tensor | None:
        """Its outputs on a split for measuring: free at ``white``, else as far as ``teacher.eval_budget`` pays."""
        if split is None or not (self.white or len(split) <= self.settings.eval_budget):
            return None
        source = self.net if self.white else self.hand_out().for_evaluation  # type: ignore[union-attr]
        return predict(source, split.images, device=self.device)


def obtain_teacher(cfg: DictConfig, bench: Bench) -> Obtained | None:
    """Load or train ``cfg.teacher``, and measure it where labels exist.

    Raises:
        TeacherError: weights that do not fit, a teacher that knows nothing or is misread, or no data to train it on.
    """
    settings = cfg.teacher
    if settings.net is None:
        return None
    if settings.weights:
        net, key, seconds = *_loaded(settings), 0.0
    else:
        net, key, seconds = _trained(cfg, bench)
    obtained = Obtained(net.eval(), key, seconds, settings, device_of(cfg))
    labelled = bench.dataset.val or bench.dataset.test
    if settings.check and obtained.white and labelled is not None:
        diagnose(obtained.net, labelled)
    return obtained


def _loaded(settings: DictConfig) -> tuple[Normalized, str]:
    net = Normalized(instantiate(settings.net), mean=settings.mean, std=settings.std, class_order=settings.class_order)
    load_weights(net, settings.weights)
    plain = OmegaConf.to_container(settings, resolve=True)
    kept = {k: plain[k] for k in ("net", "mean", "std", "class_order", "access", "decimals", "k")}  # type: ignore[index]
    return net, digest({**kept, "weights": file_digest(settings.weights)})


def _trained(cfg: DictConfig, bench: Bench) -> tuple[Normalized, str, float]:
    settings = cfg.teacher
    if bench.dataset.train is None:
        raise TeacherError(
            f"data={bench.dataset.name} has no training images to train a teacher on: "
            "give the teacher's weights with teacher.weights=FILE"
        )
    own = variant(cfg, {**settings.fit, "student": settings.net, "init": None})
    own.seed = settings.seed
    fitted = fit(own, bench, phase="teacher")
    access = [settings.access, settings.decimals, settings.k] if settings.access != "white" else []
    return fitted.network, digest([fitted.key, *access]), fitted.seconds
