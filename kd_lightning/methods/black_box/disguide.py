"""DisGUIDE: disagreement-guided data-free model extraction (Rosenthal et al., AAAI 2023).

No data, and a teacher that only answers. Two students of different weights learn from the teacher's answers, and a
generator learns to make images on which they disagree, which needs no question: where both agree they are likely right.
A second term keeps the classes of a batch equally frequent. Every new image is asked about once and kept with its
answer; most steps of the students are on images that were asked about before.

One of the two students is kept as the student; the other is kept beside it as ``twin``.

Deviations (paper / authors' code / here):
    * Images: floats / likewise / of 8 bits as asked, for the students as well.
    * Answers of probabilities: - / L1 to their centred logarithms / ``loss=l1``, or KL.
    * Images to ask about: - / the generator in evaluation mode / in training mode, since with few generator steps its
      running statistics lag behind.
    * Grey images: - / every eighth of a batch / none.
    * Images without an answer: - / - / left out, though they count as asked.
    * The end: - / - / when ``questions`` are spent, the students go on with the images kept.
    * A start: - / - / the first ``start`` questions may be about structured noise, as source=image_priors makes it.
    * Result: - / best test accuracy of both students' vote / the first student after the last step.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.data.structured_images import priors
from kd_lightning.distributed import collectives
from kd_lightning.errors import ConfigError, TrainingError
from kd_lightning.losses.disagreement import disagreement, imbalance, told_loss
from kd_lightning.methods.base.distiller import LastBatch
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.generator_pair import GeneratorPair
from kd_lightning.methods.base.protocols import AskedTeacher
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teachers.answer_types import extremes


class Disguide(GeneratorPair):
    """One round: the generator's steps, ``asked`` batches of questions, and steps on earlier ones.

    Args:
        twin: a network like the student's, with other weights.
        questions: images to ask about in the whole fit, on all ranks together; rounds after that only train.
        start: how many of them, the first, are about structured noise.
        start_seed: of that noise.
        g_steps: generator steps of a round.
        asked: batches a round to ask about; each is one step of both students.
        replay: steps of both students a round on images asked about before.
        memory: images and answers to keep, per rank; the oldest go first. None keeps all.
        diversity: weight of the classes' balance in the generator's loss (lambda).
        loss: of probabilities, ``kl`` or ``l1``; of a teacher that tells labels it is the cross-entropy.
        variant: of the disagreement; ``dual_students`` is that of Beetham et al. (ICLR 2023).
        **generative: see :class:`GeneratorPair`.
    """

    keeps = ("generator", "twin")

    def __init__(
        self,
        *,
        twin: nn.Module,
        questions: int,
        start: int = 0,
        start_seed: int = 0,
        g_steps: int = 1,
        asked: int = 1,
        replay: int = 3,
        memory: int | None = 1_000_000,
        diversity: float = 0.2,
        loss: Literal["kl", "l1"] = "kl",
        variant: Literal["disguide", "dual_students"] = "disguide",
        **generative: Any,
    ) -> None:
        super().__init__(**generative)
        if not 0 <= start <= questions:
            raise ConfigError(f"method.start={start}: expected from 0 to method.questions={questions}")
        mean, std = self.statistics()
        self.twin = Normalized(twin, mean=mean, std=std)
        self.questions, self.start, self.start_seed = questions, start, start_seed
        self.g_steps, self.asked, self.replay = g_steps, asked, replay
        self.diversity, self.loss, self.variant = diversity, loss, variant
        self.images, self.answers = ImageBuffer(memory), ImageBuffer(memory, dtype=torch.float32)
        self.left = questions // collectives.world()
        self.counts = torch.zeros(self.task.num_classes, dtype=torch.int64)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """A teacher that answers, its classes, and no data."""
        return {"teacher", "source.free", "task.classification"}

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the data, per channel."""
        net = cast(Normalized, self.student)
        return net.mean.flatten().tolist(), net.std.flatten().tolist()

    def configure_optimizers(self) -> Any:
        """That of both students first, the generator's second."""
        both = [*self.student.parameters(), *self.twin.parameters()]
        return self.scheduled(
            (self.make_optimizer(both), self.make_scheduler),
            (self.make_optimizer_g(self.generator.parameters()), self.make_scheduler_g),
        )

    def student_updates_per_round(self) -> int:
        """``asked`` + ``replay``, whether questions are left or not."""
        return self.asked + self.replay

    def on_train_start(self) -> None:
        """Reserve the budget of the whole fit, and ask about structured noise."""
        super().on_train_start()
        if isinstance(self.teacher, AskedTeacher):
            self.teacher.require(self.questions)
        if self.start and self.left == self.questions // collectives.world():
            shape = self.generator.eval()(torch.zeros(1, self.latent, device=self.device)).shape[1:]
            self.generator.train()
            mean, std = self.statistics()
            made = priors(self.start, shape, mean=mean, std=std, seed=self.start_seed)
            mine = made[collectives.rank() :: collectives.world()][: self.start // collectives.world()]
            self.ask(mine.to(self.device).float() / 255)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Generator, questions, replay."""
        _, opt_g = self.opts()
        terms: dict[str, Tensor] = {}

        # Generator: the students shall disagree, on all classes equally; no question
        with frozen(self.student, in_eval=True), frozen(self.twin, in_eval=True):
            for _ in range(self.g_steps if self.left else 0):
                x = self.generate(self.batch_size)
                one, other = self.student(x), self.twin(x)
                apart = disagreement(one, other, variant=self.variant)
                balance = imbalance(self.gathered(torch.cat([one, other]).float().softmax(1)))
                self.update(opt_g, self.diversity * balance - apart)
                terms |= {"disagreement": apart, "imbalance": balance}

        # Questions: each new image is asked about once, and both students take a step on what was answered
        fresh = 0
        while self.left and fresh < self.asked:
            x, t = self.ask(self.draw(min(self.batch_size, self.left)))
            fresh += 1
            if len(t):
                terms["fresh"] = self.imitate(x, t)

        # Replay: images that were asked about before
        for _ in range(self.replay + self.asked - fresh):
            if not len(self.images):
                raise TrainingError("the teacher answered none of the images so far: there is nothing to train on")
            places = torch.randint(len(self.images), (self.batch_size,), generator=self.rng, device=self.device)
            terms["replay"] = self.imitate(self.images.at(places), self.answers.at(places))
        self.record(**terms)

    def imitate(self, x: Tensor, t: Tensor) -> Tensor:
        """One step of both students on images (N, C, H, W) and answers (N, K); returns the first one's loss."""
        assert self.teacher is not None
        losses = [told_loss(net(x), t, access=self.teacher.access, loss=self.loss) for net in (self.student, self.twin)]
        self.update(self.opts()[0], torch.stack(losses).sum())
        return losses[0]

    @torch.no_grad()
    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ask about images (N, C, H, W), and keep those answered: returns them in 8 bits, and the answers (M, K)."""
        x = (x.float().clamp(0, 1) * 255).round() / 255
        if isinstance(self.teacher, AskedTeacher):
            places, t = self.teacher.answered(x)
        else:
            assert self.teacher is not None
            places, t = torch.arange(len(x), device=x.device), self.teacher(x)
        self.left -= len(x)
        x = x[places]
        self.images.add(x)
        self.answers.add(t.float())
        self.counts += t.argmax(1).bincount(minlength=len(self.counts)).cpu()
        self.show(x, t)
        return x, t

    def findings(self) -> dict[str, Any]:
        """How many of the images the teacher put in each class."""
        self.go_on()  # a fit that had ended before does not start again
        each = torch.stack(collectives.of_each(self.counts)).sum(0)
        return {"class_counts": {"images": extremes(each.tolist())}}

    def rank_state(self) -> dict[str, Any]:
        """Images and answers kept, the questions left, and the images last shown to callbacks."""
        state: dict[str, Any] = {"left": self.left, "counts": self.counts}
        state |= {name: getattr(self, name).save(self.beside(name)) for name in ("images", "answers")}
        return state if self.seen is None else state | {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.left, self.counts = state["left"], state["counts"]
        for name in ("images", "answers"):
            getattr(self, name).load(self.beside(name), state[name], self.device)
        if "seen" in state:
            self.seen = LastBatch(*(tensor.to(self.device) for tensor in state["seen"]))
