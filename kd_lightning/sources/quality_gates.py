"""Checks of the stages before a cGAN-KD pool: with a bad generator or ratio, cGAN-KD is worse than no pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.core.inference import predict
from kd_lightning.core.notices import notice
from kd_lightning.core.tasks import Classification, Regression, Task
from kd_lightning.data.batches import rounded
from kd_lightning.errors import TrainingError
from kd_lightning.losses.density_ratio import CONSTANT, softplus_ratio
from kd_lightning.sources.context import Context
from kd_lightning.sources.vicinity import places
from kd_lightning.teachers.white_box import FrozenTeacher


class QualityGate(NamedTuple):
    """A stage's ``value``, the ``wanted`` range, whether it ``passed``, and the ``meaning`` of a failure."""

    name: str
    value: float
    wanted: str
    passed: bool
    meaning: str

    @property
    def key(self) -> str:
        """Its key in ``result.json``: ``gate/acceptance_rate``."""
        return self.name.replace("'s", "").replace(" ", "_")

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g}, wanted {self.wanted}"


def report(gates: Sequence[QualityGate], *, strict: bool) -> None:
    """Warn of each check that failed, with its meaning.

    Raises:
        TrainingError: one failed, and ``strict`` is set.
    """
    failed = [f"{gate}: {gate.meaning}" for gate in gates if not gate.passed]
    if failed and strict:
        raise TrainingError("\n  ".join(["the pool is not worth training on:", *failed]))
    for line in failed:
        notice(f"{line}. source.strict=true makes that an error", stacklevel=2)


def of_acceptance(rate: float) -> QualityGate:
    """Check of the fraction of generated images that rejection sampling accepted."""
    return QualityGate("acceptance rate", rate, "over 0.05", rate > 0.05, "the ratio is far greater on a few images")


@torch.no_grad()
def of_ratio(context: Context, ratio: nn.Module, generator: nn.Module, latent: int, seed: int) -> list[QualityGate]:
    """Checks of a density ratio on held-out real images and as many generated ones with the same labels."""
    if (held_out := context.dataset.val) is None:
        return []
    rng = torch.Generator(context.device).manual_seed(seed)
    of_real, of_fake = [], []
    for x, label in zip(held_out.images.split(500), held_out.labels.split(500), strict=True):
        y = places(context.dataset.task, label).to(context.device)
        z = torch.randn(len(y), latent, generator=rng, device=rng.device)
        of_real.append(ratio(x.to(context.device).float() / 255, y).cpu())
        of_fake.append(ratio(rounded(generator(z, y)), y).cpu())
    real, fake = torch.cat(of_real), torch.cat(of_fake)
    mean, loss, wanted = float(fake.mean()), float(softplus_ratio(real, fake)), CONSTANT - 0.01
    knows = "the ratio is no better than a constant: it learned nothing, or the images need no subsampling"
    return [
        QualityGate(
            "mean ratio of made images", mean, "0.8 to 1.2", 0.8 <= mean <= 1.2, "it is not a ratio of densities"
        ),
        QualityGate("softplus loss held out", loss, f"under {wanted:.4f}", loss <= wanted, knows),
    ]


def of_labels(context: Context, errors: Tensor) -> list[QualityGate]:
    """Check of the teacher's error on generated images against its error on held-out real ones."""
    held_out, teacher = context.dataset.val, context.teacher
    if held_out is None or not isinstance(teacher, FrozenTeacher):
        return []
    spent = teacher.asked
    answers = predict(teacher, held_out.images, device=context.device)
    teacher.asked = spent
    own, made = float(errors_of(context.dataset.task, answers, held_out.labels).mean()), float(errors.mean())
    return [
        QualityGate(
            "teacher's error on made images",
            made,
            f"at most {2 * own:.4g}, twice that on real ones",
            made <= 2 * own,
            "the generator's images are not what their labels say, or the teacher cannot read them",
        )
    ]


def errors_of(task: Task, answers: Tensor, labels: Tensor) -> Tensor:
    """The teacher's error on each image, (N,): cross-entropy, or the absolute difference in the labels' unit."""
    if isinstance(task, Classification):
        return F.cross_entropy(answers.float(), labels, reduction="none")
    assert isinstance(task, Regression)
    return (task.numbers(answers) - labels.float()).abs()
