"""Base class of all methods: teacher, evaluation, random numbers, logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from kd_lightning.distributed import collectives
from kd_lightning.methods.base.checkpointing import ResumableModule
from kd_lightning.methods.base.protocols import Teacher

OptimizerFactory = Callable[..., Optimizer]
SchedulerFactory = Callable[[Optimizer], Any]


class LastBatch(NamedTuple):
    """The last images (N, C, H, W) that a method generated, and the teacher's answers (N, K) to them."""

    images: Tensor
    teacher: Tensor


class Distiller(ResumableModule):
    """Base class of all methods. One training batch is one round of the paper's outer loop.

    Args:
        student: the network that is trained; images (N, C, H, W) in [0, 1] to outputs.
        teacher: the teacher, or None for methods without one.
        task: loss, metrics and agreement.
        log_every: scalars are logged and checked every this many rounds.
        on_collapse: what happens when the generator collapses, ``warn`` or ``restart`` with another seed.
    """

    trains_student = True
    """Whether this method trains the student; a stage may train only a generator."""
    validates = False
    """Whether validation images are used although the student is not trained."""
    keeps: tuple[str, ...] = ("generator",)
    """Networks besides the student that a fit saves, each in a file of its name: ``generator.safetensors``."""
    generator_lr = "the generator's learning rate"
    """The setting to lower if the generator collapses."""
    instead_of_gradients = "set teacher.access=white, or ask with method=kd source=queried"
    """What to type if the method needs the teacher's gradients and the teacher gives none."""
    clips_gradients = False
    """Whether it clips gradients, which Lightning refuses for fused optimisers in mixed precision."""
    idle_epochs: str | None = None  # the setting that counts the first epochs, in which the student does not train
    version = 1  # increased whenever the method's results change: stored fits of older versions are not reused

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: Teacher | None,
        task: Any,
        log_every: int = 20,
        on_collapse: Literal["warn", "restart"] = "warn",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher, self.task = student, teacher, task
        self.log_every, self.on_collapse = log_every, on_collapse
        self.metrics = nn.ModuleDict(task.metrics())
        self.agreement = task.agreement()
        self.seen: LastBatch | None = None
        self.latest: dict[str, float] = {}

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """What the composition must offer: ``teacher``, ``teacher.gradients``, ``teacher.batch_norm``,
        ``source.images``, ``source.labels`` or ``source.free``, and its tasks, such as ``task.segmentation``.
        """
        return set()

    def student_updates_per_round(self) -> int:
        """Optimiser steps of the student in one round; a control with as many updates copies it."""
        return 1

    def student_updates(self, rounds: int) -> int:
        """Optimiser steps of the student in the first ``rounds`` rounds, which may differ from each other."""
        return rounds * self.student_updates_per_round()

    def rounds_an_epoch(self) -> int | None:
        """Rounds of one epoch if the method's settings determine it; None if ``source.rounds`` does."""
        return None

    def findings(self) -> dict[str, Any]:
        """Further entries of the fit's report, by name."""
        return {}

    def scheduled(self, *pairs: tuple[Optimizer, SchedulerFactory | None]) -> Any:
        """What ``configure_optimizers`` returns for optimisers with or without a schedule."""
        return [opt for opt, _ in pairs], [make(opt) for opt, make in pairs if make]

    def opts(self) -> list[LightningOptimizer]:
        """The optimisers, always as a list, in the order of ``configure_optimizers``."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def update(self, opt: LightningOptimizer, loss: Tensor) -> None:
        """Zero the gradients, backpropagate ``loss``, step."""
        opt.zero_grad()
        self.manual_backward(loss)
        opt.step()

    def record(self, **terms: Tensor) -> None:
        """Record this round's scalars: logged every ``log_every`` rounds, checked for NaN in every round."""
        values = self.terms_seen.note(terms, self.rounds_done)
        batch = self.trainer.fit_loop.epoch_loop.batch_idx
        if batch % self.log_every == 0 or batch + 1 == self.trainer.num_training_batches:
            self.terms_seen.refuse_nan(type(self).__name__)
            values = collectives.mean(values)
            self.report({f"train/{k}": v for k, v in zip(terms, values.tolist(), strict=True)})

    def report(self, scalars: dict[str, float]) -> None:
        """Write scalars and the round to every logger; ``self.log`` would cost more than a small step."""
        self.latest |= scalars
        for logger in self.trainer.loggers:
            logger.log_metrics({**scalars, "epoch": self.current_epoch}, step=self.rounds_done)

    def show(self, images: Tensor, teacher: Tensor) -> None:
        """Count this round's images (N, C, H, W), and show them to callbacks with the teacher's answers (N, K)."""
        self.images_made += len(images) * collectives.world()
        self.seen = LastBatch(images.detach(), teacher.detach())

    def on_train_epoch_end(self) -> None:
        """Step the learning-rate schedules, which count epochs, and average batch-norm statistics over ranks."""
        self.share_buffers()
        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[call-arg]

    def on_validation_epoch_start(self) -> None:
        """Average batch-norm statistics over ranks, so that all validate the same network."""
        self.share_buffers()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The student's outputs; their metrics against labels, and agreement with the teacher's, are logged."""
        output: Tensor = self.student(batch.x)
        for name, metric in self.metrics.items():
            metric(output, batch.y)
            self.log(f"val/{name}", cast(Metric, metric), on_epoch=True, batch_size=len(batch.x))
        if batch.t is not None:
            self.agreement(output, batch.t)
            self.log("val/agreement", self.agreement, on_epoch=True, batch_size=len(batch.x))
        return output
