"""Distillation on the images of a source: a label loss plus any number of weighted terms.

Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015): the student imitates the
teacher's softened probabilities, with the gradient rescaled by the squared temperature, besides its own
loss on the labels. ``supervised`` is this class without terms, ``kd`` with one response term. Terms may compare
anything inside the two networks, see :mod:`~kd_lightning.methods.real_data.terms`.

Deviations:
    * Weights 0.1 (labels) and 0.9 (teacher, T=4) follow the CIFAR-100 benchmark of Tian et al. (2020);
      the paper itself names no pair of weights for images.
    * Where labels are numbers, the student imitates the teacher's number: the squared difference in place of KL.
    * With stored answers (``source=queried``) the teacher is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.feature_hooks import OUTPUT, Taps
from kd_lightning.data.batches import Batch
from kd_lightning.errors import ConfigError
from kd_lightning.losses.response import kl
from kd_lightning.losses.soft_labels import answer_cross_entropy, soft_cross_entropy
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.real_data.terms import Term, located, wanted
from kd_lightning.networks.normalized import Normalized

FOR_CLASSES = {f"{loss.__module__}.{loss.__name__}" for loss in (kl, soft_cross_entropy, answer_cross_entropy)}
"""Losses that expect logits of classes; :func:`~kd_lightning.losses.soft_labels.imitation` suits regression, too."""


class Distill(Distiller):
    """label * L(student, y) + sum of weight * term(student, teacher).

    A student that neither the label loss nor a term looks at is not trained: such a fit trains modules on the teacher.
    Where nothing behind its last tap is wanted, a network's forward pass ends there.

    Args:
        optimizer: makes the optimiser of the student and of the terms' modules from their parameters.
        scheduler: makes its schedule, stepped once an epoch.
        label: weight of the task's loss on the labels.
        terms: name -> settings of a :class:`~kd_lightning.methods.real_data.terms.Term`.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label: float = 0.1,
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.label = label
        self.terms = nn.ModuleDict({name: Term(**term) for name, term in (terms or {}).items() if term is not None})
        self._place_terms()
        self.trains_student = bool(label) or any(term.taps("student") for term in self._terms())
        self.seen_in = {"student": Taps(bare(self.student), self._paths("student"))}
        if (teacher := getattr(self.teacher, "net", None)) is not None and self._paths("teacher"):
            self.seen_in["teacher"] = Taps(bare(teacher), self._paths("teacher"))

    @classmethod
    def needs(cls, *, label: float = 0.1, terms: Any = None, **settings: Any) -> set[str]:
        """Images; labels, a teacher, its features and lasting positions if a loss asks for them; classes if one is
        made for them.
        """
        need = {"source.images"}
        if label:
            need.add("source.labels")
        for term in (terms or {}).values():
            if not isinstance(term, Mapping):
                continue
            target = located(term.get("loss"))
            asked = wanted(target)
            taps = term.get("teacher", OUTPUT)
            taps = [taps] if isinstance(taps, str) else taps or []
            need |= {"teacher"} if taps or "teacher_logits" in asked else set()
            need |= {"teacher.features"} if any(tap != OUTPUT for tap in taps) else set()
            need |= {"source.labels"} if "labels" in asked else set()
            need |= {"source.index"} if "index" in asked else set()
            if isinstance(term.get("loss"), Mapping) and term["loss"].get("_target_") in FOR_CLASSES:
                need.add("task.classification")
        return need

    def build_terms(self, image_shape: Sequence[int], num_images: int | None) -> None:
        """Build adapters and losses that are modules, for the shapes that a dry run finds; called before training.

        Args:
            image_shape: (C, H, W).
            num_images: number of the source's images; None if it makes new ones.

        Raises:
            ConfigError: a tapped module is not run exactly once, or an adapter does not fit; names the term.
        """
        if all(term.is_plain for term in self._terms()):
            return
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            shapes = {side: self._measured(side, image_shape) for side in self.seen_in}
            shapes.setdefault("teacher", {OUTPUT: shapes["student"][OUTPUT]})
            for name, term in self.terms.items():
                try:
                    term.build(shapes["student"], shapes["teacher"], num_images)
                except ConfigError as error:
                    raise ConfigError(f"method.terms.{name}: {error}") from error

    def kept_modules(self) -> dict[str, nn.Module]:
        """The terms' modules, by the name of the file that a fit keeps each in."""
        return {key: net for name, term in self.terms.items() for key, net in term.kept(name).items()}

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        own = list(self.student.parameters()) if self.trains_student else []
        own += [p for p in self.terms.parameters() if p.requires_grad]
        return self.scheduled((self.make_optimizer(own), self.make_scheduler))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch, one step."""
        student = self.look("student", batch.x, output=bool(self.label) or self._asks_output("student"))
        losses: dict[str, Tensor] = {}
        if self.label:
            losses["label"] = self.label * self.task.loss(student[OUTPUT], batch.y)
        if self.terms:
            teacher = self.ask(batch)
            offered = {"labels": batch.y, "index": batch.index, "epoch": self.current_epoch}
            offered |= {"student_logits": student.get(OUTPUT), "teacher_logits": teacher.get(OUTPUT)}
            for name, term in self.terms.items():
                try:
                    losses[name] = term(student, teacher, offered, self.gathered)
                except ValueError as error:  # such as a memory of images that are not the same as before
                    raise ConfigError(f"method.terms.{name}: {error}") from error
        self.update(self.opts()[0], torch.stack(list(losses.values())).sum())
        self.record(**losses)

    def look(self, side: str, x: Tensor, *, output: bool) -> dict[str, Tensor]:
        """Values at the taps of ``student`` or ``teacher`` for images x, and its output if it is wanted."""
        net: Any = getattr(self, side)
        if side not in self.seen_in:
            return {OUTPUT: net(x)} if output else {}
        return self.seen_in[side].run(lambda: net(x), output=output)

    @torch.no_grad()
    def ask(self, batch: Batch) -> dict[str, Tensor]:
        """Values at the teacher's taps; its answers (N, K) are those stored with the batch, else asked for now."""
        output = self._asks_output("teacher")
        told = self.look("teacher", batch.x, output=output and batch.t is None)
        return told | ({OUTPUT: batch.t} if output and batch.t is not None else {})

    def _terms(self) -> list[Term]:
        return list(self.terms.values())  # type: ignore[arg-type]

    def _place_terms(self) -> None:
        for side, net in (("student", self.student), ("teacher", getattr(self.teacher, "net", None))):
            for term in self._terms() if net is not None else []:
                term.place(side, bare(net))

    def _paths(self, side: str) -> list[str]:
        return [path for term in self._terms() for path in term.taps(side)]

    def _asks_output(self, side: str) -> bool:
        return OUTPUT in self._paths(side)

    def _measured(self, side: str, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        net: nn.Module = self.student if side == "student" else self.white.net
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        training = net.training
        try:
            return self.seen_in[side].measure(lambda: net.eval()(torch.zeros(2, *image_shape, device=device)))
        except ConfigError as error:
            raise ConfigError(f"method.terms, {side}: {error}") from error
        finally:
            net.train(training)


def bare(net: nn.Module) -> nn.Module:
    """The network inside the wrapper that normalises its input."""
    return net.net if isinstance(net, Normalized) else net
