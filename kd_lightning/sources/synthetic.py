"""cGAN-KD's processed images of a conditional generator (Ding et al., ESWA 213, 2023), joined to the real ones.

Four settings: whether the generator's images are subsampled by a density ratio (``subsample``, the paper's M1), which
fraction is kept by the teacher's error against the label they were generated for (``keep``, the paper's rho of M2),
whether the teacher's answer replaces that label (``relabel``, M2 for regression), and how many the student sees
(``images``, M^g). Classes: ``subsample=true keep=0.9``. Numbers: ``subsample=true keep=0.7 relabel=true``.

Any conditional generator works: a network of latents and labels, with a file of weights.

Deviations (paper / authors' code / here):
    * Threshold of the filter: the rho-quantile of the teacher's errors / for classes of 1000 further images, for
      numbers of the pool / of the pool, for each class or over all numbers.
    * Size of the pool: - / filtered classes are refilled / the same before the filter, so that variants share it.
    * Images before the filter: - / augmented as in training / unchanged.
    * Pixels: - / truncated to 8 bits / rounded, before ratio and teacher receive them.
    * Statistics of the student's input: - / of real and generated images together / the data set's.
    * Batches of numbers: - / drawn with replacement / a shuffled pass, as for classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.core.strangers import read_tensors
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.data.batches import rounded
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import ConfigError
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool import checked, gathered, made_by, noise_on, obtain_parts
from kd_lightning.sources.pool_choice import choice, smallest
from kd_lightning.sources.quality_gates import QualityGate, errors_of, of_acceptance, of_labels, of_ratio, report
from kd_lightning.sources.queried_once import ask, count_classes
from kd_lightning.sources.rejection import Accepted, rejection
from kd_lightning.sources.vicinity import places
from kd_lightning.store.artifacts import by_content, remedy
from kd_lightning.store.files import writing
from kd_lightning.teachers.white_box import FrozenTeacher

PER_PART = 2000
"""Largest number of images in one file of a pool."""


class Synthetic:
    """Real images with their labels, and images of a generator.

    Args:
        generator: latents (N, latent) and labels (N,), classes or places in [0, 1], to images (N, C, H, W) in [0, 1].
        weights: its weights, ``stage:NAME/generator.safetensors`` or a file.
        latent: length of z.
        per_label: images of the pool for each label.
        labels: for regression, number of equally spaced labels in the pool; None for those of the training images.
        subsample: accept images by their density ratio.
        ratio: images and labels to ratios (N,); required by ``subsample``.
        ratio_weights: its weights.
        burn_in: number of images for the first largest ratio.
        draw: images drawn at a time.
        teacher: ``net`` and ``weights`` of a teacher for filter and labels, obtained as for a run; None for the run's.
        keep: fraction of the pool with the smallest errors of the teacher, per class or over all numbers; None for all.
        relabel: the teacher's answer replaces the label.
        processing: one of the paper's variants in place of these three: ``unprocessed``, ``subsampled``, ``filtered``
            (after subsampling) or ``replaced`` (after filtering), the last two with ``keep``; None for none.
        images: number of the pool's images that training sees, for classes equally many of each; None for all.
        real: join the training images.
        strict: raise if an earlier stage fails a check, instead of a warning.
        batch_size: images per batch and rank.
        augment: applied to each batch in this order.
        seed: of the pool and of the choice from it.
    """

    version = 1
    offers = frozenset({"source.images", "source.index", "source.labels", "source.synthetic"})

    def __init__(
        self,
        *,
        generator: nn.Module,
        weights: str,
        latent: int,
        per_label: int,
        batch_size: int,
        labels: int | None = None,
        subsample: bool = True,
        ratio: nn.Module | None = None,
        ratio_weights: str | None = None,
        burn_in: int = 1000,
        draw: int = 500,
        keep: float | None = None,
        relabel: bool = False,
        processing: Literal["unprocessed", "subsampled", "filtered", "replaced"] | None = None,
        images: int | None = None,
        real: bool = True,
        strict: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        teacher: Mapping[str, Any] | None = None,
    ) -> None:
        if keep is not None and not 0 < keep <= 1:
            raise ConfigError(f"source.keep={keep}: expected a part, more than 0 and at most 1, or null for all")
        if processing is not None:
            subsample, relabel = processing != "unprocessed", processing == "replaced"
            keep = keep if processing in ("filtered", "replaced") else None
        if subsample and (ratio is None or ratio_weights is None):
            raise ConfigError(
                "source.subsample=true needs source.ratio and source.ratio_weights: train a ratio, or say "
                "source.subsample=false"
            )
        self.generator, self.weights, self.latent = generator, weights, latent
        self.ratio, self.ratio_weights = (ratio, ratio_weights) if subsample else (None, None)
        self.per_label, self.labels, self.burn_in, self.draw = per_label, labels, burn_in, draw
        self.keep, self.relabel, self.images = keep, relabel, images
        self.real, self.strict = real, strict
        self.batch_size, self.augment, self.seed = batch_size, augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """Generate the pool or read it, filter it, choose from it, and join the real images.

        Raises:
            ConfigError: a filter, or the teacher's labels, without a teacher.
            DataError: the pool is smaller than ``images``.
            TeacherError: a file of weights cannot be read, or holds another network.
            TrainingError: the ratio accepts nothing; or, with ``strict``, an earlier stage failed a check.
        """
        asks = self.keep is not None or self.relabel
        if asks and context.teacher is None:
            raise ConfigError(
                "source.keep and source.relabel query a teacher, but teacher=none: choose one with teacher=NAME, or "
                "say source.keep=null source.relabel=false"
            )
        task = context.dataset.task
        assert isinstance(task, Classification | Regression)
        load_weights(self.generator, self.weights)
        self.generator.eval().requires_grad_(False).to(context.device)
        if self.ratio is not None and self.ratio_weights is not None:
            load_weights(self.ratio, self.ratio_weights)
            self.ratio.eval().requires_grad_(False).to(context.device)
        name, parts = self._pool(context)
        assigned = torch.cat([part["labels"] for part in parts])
        context.notes["images_synthesised"] = len(assigned)
        rows, labels, gates = torch.arange(len(assigned)), assigned, self._gates(context, parts)
        if asks:
            rows, answers = self._answers(context, name, parts)
            errors = errors_of(task, answers, assigned[rows])
            gates += of_labels(context, errors)
            if self.relabel:
                labels = assigned.clone()
                labels[rows] = answers.argmax(1) if isinstance(task, Classification) else task.numbers(answers)
            if self.keep is not None:
                rows = rows[smallest(errors, assigned[rows], self.keep, each=isinstance(task, Classification))]
        context.notes["pool"] = {"gates": {g.key: {"value": g.value, "passed": g.passed} for g in gates}}
        report(gates, strict=self.strict)
        if self.images is not None:
            rng = torch.Generator().manual_seed(self.seed)
            groups = assigned[rows] if isinstance(task, Classification) else torch.zeros(len(rows), dtype=torch.long)
            rows = rows[choice(groups, self.images, rng)].sort().values
        context.notes["pool"]["used"] = len(rows)
        made = gathered(parts, rows)
        if not self.real:
            return self._served(context, made, labels[rows])
        real = context.real()
        return self._served(context, torch.cat([real.images, made]), torch.cat([real.labels, labels[rows]]))

    def _served(self, context: Context, images: Tensor, labels: Tensor) -> TensorLoader:
        return context.serve(images, labels, batch_size=self.batch_size, augment=self.augment)

    def _pool(self, context: Context) -> tuple[str, list[dict[str, Tensor]]]:
        """Its name in the store, and its parts."""
        wanted = self.wanted(context)
        chunks = wanted.split(max(1, PER_PART // self.per_label))

        def make(number: int, random: np.random.Generator) -> dict[str, Tensor]:
            rng = noise_on(context, random)
            made = [self._of_label(context, label, rng) for label in chunks[number]]
            return {
                "images": torch.cat([m.images for m in made]),
                "labels": chunks[number].repeat_interleave(self.per_label),
                "drawn": torch.tensor([m.drawn for m in made]),
                "accepted": torch.tensor([m.accepted for m in made]),
            }

        config = {
            "source": "synthetic",
            "version": self.version,
            "generator": by_content(self.weights, context.store.root),
            "ratio": by_content(self.ratio_weights, context.store.root),
            **made_by(self, self.generator, self.ratio),
            "shape": context.dataset.image_shape,
            "labels": wanted.tolist(),
            "images": len(wanted) * self.per_label,
            **{k: getattr(self, k) for k in ("latent", "per_label", "seed", "burn_in", "draw")},
        }
        if self.ratio is None:
            del config["burn_in"], config["draw"]
        return context.store.path("pool", config).name, obtain_parts(context, config, len(chunks), make)

    def wanted(self, context: Context) -> Tensor:
        """Labels (L,) of the pool, which has ``per_label`` images of each."""
        task = context.dataset.task
        if isinstance(task, Classification):
            return torch.arange(task.num_classes)
        if self.labels is None:
            return context.real().labels.unique()
        assert isinstance(task, Regression)
        return torch.linspace(task.low, task.high, self.labels)

    def of_label(
        self, context: Context, label: Tensor, rng: torch.Generator
    ) -> tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor] | None]:
        """Two functions for a label: one draws n images, the other, or None, gives images their density ratios."""
        y = places(context.dataset.task, label).to(context.device)

        def draw(n: int) -> Tensor:
            z = torch.randn(n, self.latent, generator=rng, device=rng.device)
            return rounded(checked(self.generator(z, y.expand(n)), self.generator))

        ratio = self.ratio
        return draw, None if ratio is None else lambda x: ratio(x, y.expand(len(x)))

    @torch.no_grad()
    def _of_label(self, context: Context, label: Tensor, rng: torch.Generator) -> Accepted:
        draw, ratio = self.of_label(context, label, rng)
        if ratio is None:
            images = torch.cat([draw(len(rows)) for rows in torch.arange(self.per_label).split(PER_PART)])
            return Accepted(images, self.per_label, self.per_label, 1.0)
        return rejection(draw, ratio, self.per_label, burn_in=self.burn_in, batch_size=self.draw, rng=rng)

    def _answers(self, context: Context, pool: str, parts: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Rows of the pool that the teacher answered, and its answers; those of a white-box teacher are stored."""
        if isinstance(context.teacher, FrozenTeacher):
            count, spent = sum(len(part["images"]) for part in parts), context.teacher.asked

            def build(folder: Path) -> None:
                told = torch.cat([ask(context, part["images"], called="made images")[1] for part in parts])
                with writing(folder):
                    save_file({"answers": told}, folder / "answers.safetensors")

            folder = context.store.obtain("labels", answers_config(context, pool), build)
            context.teacher.asked = spent + count  # also where an earlier run did it
            context.notes["queries"] = count
            answers = read_tensors(folder / "answers.safetensors", advice=remedy(folder))["answers"]
            context.notes.get("class_counts", {}).pop("made images", None)  # counted where this run asked
            count_classes(context, "made images", answers)
            return torch.arange(count), answers
        rows, heard, begin = [], [], 0
        for part in parts:
            positions, told = ask(context, part["images"], called="made images")
            rows.append(begin + positions)
            heard.append(told)
            begin += len(part["images"])
        return torch.cat(rows), torch.cat(heard)

    def _gates(self, context: Context, parts: Sequence[dict[str, Tensor]]) -> list[QualityGate]:
        """The checks that need no teacher."""
        if self.ratio is None:
            return []
        drawn, accepted = (sum(int(part[key].sum()) for part in parts) for key in ("drawn", "accepted"))
        return [of_acceptance(accepted / drawn), *of_ratio(context, self.ratio, self.generator, self.latent, self.seed)]


def answers_config(context: Context, pool: str) -> dict[str, str]:
    """What determines a white-box teacher's answers to the pool of that name."""
    return {"pool": pool, "teacher": context.keys["teacher"]}
