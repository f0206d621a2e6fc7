"""BSS: distillation with samples that support the decision boundary (Heo, Lee, Yun and Choi, AAAI 2019).

A training image that teacher and student both classify correctly is moved down the teacher's margin between its class
and another until it has just crossed the decision boundary. The student imitates the teacher there, too, besides
ordinary distillation on the images themselves: samples near the boundary tell most about a classifier.

Deviations (paper / authors' code / here):
    * Target classes: a sum over all, weighted by the teacher's probabilities / one drawn / one drawn with those
      probabilities, an unbiased estimate; the code's draw always ends at the second best where the teacher is
      certain, here the others keep their proportions. ``target="second"`` always takes the second best.
    * Walks that end in a third class, or after ``max_steps``: ended by rules of their own / not told apart, trained
      on / trained on unless ``keep_invalid=False``. ``train/crossed`` is the fraction of the others.
    * Pixels: - / clamped to +-2.5 in normalised units, which cuts bright pixels off and allows impossible dark
      ones / clamped to [0, 1] in data units. Steps are measured in the units of the teacher's normalisation.
    * Losses: cross-entropies, the two soft ones at T=3 and without a factor T^2, so that the labels weigh more than in
      ``method=kd``; ``label``, ``alpha`` and ``temperature`` say it otherwise where that is worse (see recipe/).
    * The student's batch norms see the walks' ends in training mode, in a pass of their own, as in the code;
      ``student_bn="frozen"`` keeps them out of the running statistics.
    * Learning rate: - / each drop begins a new optimiser / a schedule, which keeps the momentum.
    * Attack in full precision whatever the trainer's.
    * Result: - / the last epoch / the last step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.data.batches import Batch
from kd_lightning.losses.boundary_walk import boundary_walk
from kd_lightning.losses.soft_labels import soft_cross_entropy
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class Bss(Distiller):
    """label L_cls + alpha L_KD + beta L_BS on one batch.

    Args:
        optimizer: makes the student's optimiser from its parameters.
        scheduler: makes its schedule, stepped once an epoch.
        label: weight of L_cls.
        alpha: weight of L_KD before the first epoch and in the last, falling linearly.
        beta: weight of L_BS before the first epoch, falling linearly.
        until: share of the epochs after which beta is 0.
        temperature: T.
        n_adv: most base images of a batch (N_adv); a quarter of it in the paper.
        eta: length of a walk's step for a margin of 1, in normalised units.
        eps: added to the margin.
        max_steps: I_max.
        score: what the margin is taken of, ``logits`` or ``probs``.
        select: of too many base images, those with most ``disagreement``, or a ``random`` choice.
        target: ``sample`` or ``second``, see the deviations above.
        keep_invalid: whether walks that did not cross into their target are trained on.
        student_bn: ``train`` or ``frozen``, see the deviations above.
        **base: see :class:`Distiller`.
    """

    instead_of_gradients = (
        "set teacher.access=white, or choose another way: (1) walk on the student and ask the teacher about the points "
        "found, a method of your own; (2) train a white-box proxy on the answers first (method=kd source=queried), "
        "then run method=bss with teacher.weights=PROXY; (3) search the boundary by labels alone as DB3KD does, at "
        "thousands of questions an image"
    )

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label: float = 1.0,
        alpha: tuple[float, float] = (4.0, 1.0),
        beta: float = 2.0,
        until: float = 0.75,
        temperature: float = 3.0,
        n_adv: int = 64,
        eta: float = 0.3,
        eps: float = 1e-4,
        max_steps: int = 10,
        score: Literal["logits", "probs"] = "logits",
        select: Literal["disagreement", "random"] = "disagreement",
        target: Literal["sample", "second"] = "sample",
        keep_invalid: bool = True,
        student_bn: Literal["train", "frozen"] = "train",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.label, self.alpha, self.beta, self.until, self.temperature = label, alpha, beta, until, temperature
        self.n_adv, self.eta, self.eps, self.max_steps, self.score = n_adv, eta, eps, max_steps, score
        self.select, self.target = select, target
        self.keep_invalid, self.student_bn = keep_invalid, student_bn

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """The teacher's gradients, labelled images."""
        return {"teacher.gradients", "source.images", "source.labels", "task.classification"}

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch, one step."""
        assert batch.y is not None
        alpha, beta = weights(self.progress(), self.alpha, self.beta, self.until)
        s = self.student(batch.x)
        with torch.no_grad():
            t = self.white(batch.x)
        losses = {"label": self.label * self.task.loss(s, batch.y), "kd": alpha * self.imitate(s, t)}

        # Boundary supporting samples: walk from the base images to the teacher's boundary to another class
        ends = crossed = torch.zeros((), device=self.device)
        base = self.bases(s.detach(), t, batch.y) if beta else batch.y[:0]
        if len(base):
            label = batch.y[base]
            walk = boundary_walk(
                self.white,
                batch.x[base],
                label,
                self.targets(t[base], label),
                std=cast(Tensor, self.white.net.std),
                eta=self.eta,
                eps=self.eps,
                max_steps=self.max_steps,
                score=self.score,
            )
            crossed = walk.ok.float().mean()
            kept = torch.ones_like(walk.ok) if self.keep_invalid else walk.ok
            if kept.any():
                x, t = walk.x[kept], walk.scores[kept]
                with _batch_norms_frozen(self.student, self.student_bn == "frozen"):
                    losses["bss"] = ends = beta * self.imitate(self.student(x), t)
                self.show(x, t)

        self.update(self.opts()[0], torch.stack(list(losses.values())).sum())
        self.record(**losses | {"bss": ends, "crossed": crossed})

    def progress(self) -> float:
        """Fraction e / E of the epochs, including the current one."""
        epochs = self.trainer.max_epochs
        assert epochs is not None
        return (self.current_epoch + 1) / epochs

    def imitate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """J(softmax(t / T), softmax(s / T)) of logits (N, K), without T^2."""
        return soft_cross_entropy(
            student, (teacher.float() / self.temperature).softmax(1), temperature=self.temperature
        )

    def bases(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        """Indices, at most ``n_adv``, of images that both classify correctly, by logits (N, K) and labels (N,)."""
        both = ((teacher.argmax(1) == label) & (student.argmax(1) == label)).nonzero().view(-1)
        if len(both) <= self.n_adv:
            return both
        if self.select == "random":
            chosen = torch.randperm(len(both), generator=self.rng, device=self.device)[: self.n_adv]
        else:
            chosen = disagreement(student[both], teacher[both], label[both]).topk(self.n_adv).indices
        return both[chosen]

    def targets(self, teacher: Tensor, base: Tensor) -> Tensor:
        """A class (N,) other than ``base`` for each row of the teacher's logits (N, K)."""
        others = other_classes(teacher, base)
        if self.target == "second":
            return others.argmax(1)
        return torch.multinomial(others, 1, generator=self.rng).view(-1)


def weights(progress: float, alpha: tuple[float, float], beta: float, until: float) -> tuple[float, float]:
    """Alpha and beta at ``progress`` = e / E, linear from alpha[0] to alpha[1], and from beta to 0 at ``until``."""
    return alpha[1] + (alpha[0] - alpha[1]) * (1 - progress), max(0.0, beta * (1 - progress / until))


def disagreement(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Sum over all classes but the true one of (q_t - q_s)^2, (N,), from logits (N, K)."""
    apart = (teacher.float().softmax(1) - student.float().softmax(1)) ** 2
    return apart.scatter(1, label[:, None], 0.0).sum(1)


def other_classes(teacher: Tensor, base: Tensor) -> Tensor:
    """The teacher's probabilities (N, K) without the base class (N,), exact even if that is nearly certain."""
    return teacher.float().scatter(1, base[:, None], -torch.inf).softmax(1)


@contextmanager
def _batch_norms_frozen(net: nn.Module, frozen: bool) -> Iterator[None]:
    """Inside the ``with`` block, batch norms use their running statistics without updates, if ``frozen``."""
    learning = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training] if frozen else []
    for module in learning:
        module.eval()
    try:
        yield
    finally:
        for module in learning:
            module.train()
