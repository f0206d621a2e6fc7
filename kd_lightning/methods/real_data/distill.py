"""Distillation on the images of a source: a label loss plus any number of weighted terms.

Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015): the student imitates the
teacher's softened probabilities, with the gradient rescaled by the squared temperature, besides its own
loss on the labels. ``supervised`` is this class without terms, ``kd`` with one response term. Terms may compare
anything inside the two networks, see :mod:`~kd_lightning.methods.real_data.terms`.

Deviations:
    * Weights 0.1 (labels) and 0.9 (teacher, T=4) follow the CIFAR-100 benchmark of Tian et al. (2020);
      the paper itself names no pair of weights for images. For label maps T=1, as Liu et al. (CVPR 2019) have it.
    * Where labels are numbers, the student imitates the teacher's number: the squared difference in place of KL.
      Where an image has several labels, KL of each label by itself, at T=1.
    * With stored answers (``source=queried``) the teacher is not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.taps import OUTPUT, Taps, find
from kd_lightning.data.batches import Batch
from kd_lightning.errors import ConfigError
from kd_lightning.losses import learned_temperature, logits
from kd_lightning.losses.dense import adaptation, affinity, channel_wise, dist_pixels
from kd_lightning.losses.response import kl
from kd_lightning.losses.soft_labels import answer_cross_entropy, soft_cross_entropy
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.real_data.terms import Term, located, wanted
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.places import spread

FOR_CLASSES = {f"{loss.__module__}.{loss.__name__}" for loss in (kl, soft_cross_entropy, answer_cross_entropy)}
"""Losses that expect logits of classes; :func:`~kd_lightning.losses.soft_labels.imitation` suits regression, too."""
ONE_LABEL = ("classification", "regression", "segmentation")
"""Tasks with one label for an image or a pixel."""
FOR_VECTORS = (logits.__name__, learned_temperature.__name__)
"""Files of losses that expect one vector of logits for an image."""
FOR_MAPS = (channel_wise, dist_pixels, adaptation, affinity)
"""Losses that expect logits of every pixel, unless a term shows them features."""


class Distill(Distiller):
    """label * L(student, y) + sum of weight * term(student, teacher).

    A student that neither the label loss nor a term looks at is not trained: such a fit trains modules on the teacher.
    Where nothing behind its last tap is wanted, a network's forward pass ends there.

    Args:
        optimizer: makes the optimiser of the student and of the terms' modules from their parameters.
        scheduler: makes its schedule, stepped once an epoch.
        label: weight of the task's loss on the labels.
        terms: name -> settings of a :class:`~kd_lightning.methods.real_data.terms.Term`.
        views: images (N, C, H, W) -> (V N, C, H, W), the images themselves and then further views of them, such as
            rotations; the label loss and most terms see only the first N.
        copied: path in the bare student -> path in the bare teacher whose weights that module begins with, ``.`` for
            the whole; weights that only the teacher has are left out.
        freeze: paths in the bare student of modules that stay as they are, batch-norm statistics included.
        lr_of: path in the bare student, or ``terms.NAME`` -> learning rate of the parameters there, in place of the
            optimiser's; of nested paths the first counts.
        clip: largest norm of all gradients together; None for any.
        accumulate: batches of one update, whose gradients are averaged; the last update of an epoch may have fewer.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label: float = 0.1,
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        views: Callable[[Tensor], Tensor] | None = None,
        copied: Mapping[str, str] | None = None,
        freeze: Sequence[str] = (),
        lr_of: Mapping[str, float] | None = None,
        clip: float | None = None,
        accumulate: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.label, self.views, self.several = label, views, isinstance(self.task, MultiLabel)
        self.lr_of, self.clip, self.accumulate = dict(lr_of or {}), clip, accumulate
        self.held = 0  # batches whose gradients wait for the next update
        self.frozen = list(freeze)
        for own, theirs in (copied or {}).items():
            self._copy(own, theirs)
        for path in freeze:
            self.at(path).requires_grad_(False)
        self.terms = nn.ModuleDict({name: Term(**term) for name, term in (terms or {}).items() if term is not None})
        self._place_terms()
        self.trains_student = bool(label) or any(term.taps("student") for term in self._terms())
        self.seen_in = {"student": Taps(bare(self.student), self._paths("student"))}
        if (teacher := getattr(self.teacher, "net", None)) is not None and self._paths("teacher"):
            self.seen_in["teacher"] = Taps(bare(teacher), self._paths("teacher"))

    @classmethod
    def needs(cls, *, label: float = 0.1, terms: Any = None, copied: Any = None, **settings: Any) -> set[str]:
        """Images; labels, a teacher, its features and lasting positions if a loss asks for them; classes if one is
        made for them.
        """
        need, one_label = {"source.images"} | ({"teacher", "teacher.features"} if copied else set()), False
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
                need |= {"task.classification", "task.segmentation"}
            elif getattr(target, "__module__", None) in FOR_VECTORS:
                need.add("task.classification")
            elif term.get("student", OUTPUT) == OUTPUT and target in FOR_MAPS:
                need.add("task.segmentation")
            elif "labels" in asked and str(getattr(target, "__module__", "")).startswith("kd_lightning."):
                one_label = True
        if any(each.startswith("task.") for each in need):
            return need
        return need | ({f"task.{kind}" for kind in ONE_LABEL} if one_label else {"task.multi_label"})

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
            for name, term in self._named():
                try:
                    term.build(shapes["student"], shapes["teacher"], num_images)
                except ConfigError as error:
                    raise ConfigError(f"method.terms.{name}: {error}") from error

    def kept_modules(self) -> dict[str, nn.Module]:
        """The terms' modules, by the name of the file that a fit keeps each in."""
        return {key: net for name, term in self._named() for key, net in term.kept(name).items()}

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        own = list(self.student.parameters()) if self.trains_student else []
        if self.frozen:
            own = [p for p in own if p.requires_grad]
        own += [p for p in self.terms.parameters() if p.requires_grad]
        return self.scheduled((self.make_optimizer(self.groups(own) if self.lr_of else own), self.make_scheduler))

    def groups(self, own: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The optimiser's groups of its parameters, each path of ``lr_of`` with its learning rate."""
        left, groups = {id(p): p for p in own}, list[dict[str, Any]]()
        for path, lr in self.lr_of.items():
            mine = [left.pop(id(p)) for p in self.at(path).parameters() if id(p) in left]
            groups += [{"params": mine, "lr": lr}] if mine else []
        return [*groups, {"params": list(left.values())}] if left else groups

    def at(self, path: str) -> nn.Module:
        """The module at a path in the bare student, or the term at ``terms.NAME``."""
        if path.startswith("terms."):
            return self.get_submodule(path)
        return _module(bare(self.student), path)

    def train(self, mode: bool = True) -> Distill:
        """Keep frozen modules in eval mode."""
        super().train(mode)
        for path in self.frozen:
            self.at(path).eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch, one step."""
        n, x = len(batch.x), batch.x if self.views is None else self.views(batch.x)
        student = self.look("student", x, output=bool(self.label) or self._asks_output("student"))
        losses: dict[str, Tensor] = {}
        if self.label:
            losses["label"] = self.label * self.task.loss(student[OUTPUT][:n], batch.y)
        if self.terms:
            teacher = self.ask(x, batch.t)
            told = {"labels": batch.y, "index": batch.index, "epoch": self.current_epoch, "several": self.several}
            for name, term in self.terms.items():
                rows = len(x) if term.all_views else n
                known = {**told, "views": rows // n}
                try:
                    losses[name] = term(_first(student, rows), _first(teacher, rows), known, self.gathered)
                except ValueError as error:  # such as a memory of images that are not the same as before
                    raise ConfigError(f"method.terms.{name}: {error}") from error
        self.descend(torch.stack(list(losses.values())).sum(), last=batch_idx + 1 == self.trainer.num_training_batches)
        self.record(**losses)

    def descend(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a batch; update with those of ``accumulate`` batches, or after the last of an epoch."""
        opt = self.opts()[0]
        if self.held == 0:
            opt.zero_grad()
        self.manual_backward(loss / self.accumulate if self.accumulate > 1 else loss)
        self.held += 1
        if self.held < self.accumulate and not last:
            return
        if self.clip is not None:
            self.clip_gradients(cast(Optimizer, opt), gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()
        self.held = 0

    def student_updates(self, rounds: int) -> int:
        """Updates in the first ``rounds`` batches."""
        if self.accumulate == 1:
            return rounds
        epochs, more = divmod(rounds, int(self.trainer.num_training_batches))
        return epochs * math.ceil(self.trainer.num_training_batches / self.accumulate) + more // self.accumulate

    def rank_state(self) -> dict[str, Any]:
        """Gradients that wait for the next update."""
        return {"held": self.held, "gradients": [p.grad for p in self.parameters()]} if self.held else {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.held = state.get("held", 0)
        for p, gradient in zip(self.parameters(), state.get("gradients", ()), strict=False):
            p.grad = None if gradient is None else gradient.to(p.device)

    def look(self, side: str, x: Tensor, *, output: bool) -> dict[str, Tensor]:
        """Values at the taps of ``student`` or ``teacher`` for images x, and its output if it is wanted."""
        net: Any = getattr(self, side)
        if side not in self.seen_in:
            return {OUTPUT: net(x)} if output else {}
        return self.seen_in[side].run(lambda: net(x), output=output)

    @torch.no_grad()
    def ask(self, x: Tensor, stored: Tensor | None) -> dict[str, Tensor]:
        """Values at the teacher's taps for images x; its answers (N, K) are those stored, if there are as many."""
        output = self._asks_output("teacher")
        if not output or stored is None or len(stored) < len(x):
            return self.look("teacher", x, output=output)
        return self.look("teacher", x, output=False) | {OUTPUT: stored}

    def _copy(self, own: str, theirs: str) -> None:
        module, there = self.at(own), _module(bare(self.white.net), theirs).state_dict()
        if missing := [key for key, value in module.state_dict().items() if there.get(key, value).shape != value.shape
                       or key not in there]:  # fmt: skip
            raise ConfigError(
                f"method.copied.{own}={theirs}: the teacher has no {missing[0]} of that shape there: choose the same "
                "module of the same kind of network"
            )
        module.load_state_dict({key: there[key] for key in module.state_dict()})

    def _named(self) -> list[tuple[str, Term]]:
        return list(self.terms.items())  # type: ignore[arg-type]

    def _terms(self) -> list[Term]:
        return list(self.terms.values())  # type: ignore[arg-type]

    def _place_terms(self) -> None:
        nets: dict[str, Any] = {"student": self.student, "teacher": getattr(self.teacher, "net", None)}
        for side, net in nets.items():
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


def _first(values: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The first n rows of each."""
    return {path: value if len(value) == n else value[:n] for path, value in values.items()}


def _module(net: nn.Module, path: str) -> nn.Module:
    """The module at a path, or at a place, of a bare network."""
    return net if path == "." else net.get_submodule(find(net, spread(net, path))[0])


def bare(net: nn.Module) -> nn.Module:
    """The network inside the wrapper that normalises its input."""
    return net.net if isinstance(net, Normalized) else net
