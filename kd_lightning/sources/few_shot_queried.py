"""A few real images, and images synthesised from them, that the teacher answers once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from kd_lightning.core.strangers import read_tensors
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import ConfigError
from kd_lightning.sources.context import Context
from kd_lightning.sources.queried_once import ask
from kd_lightning.sources.real import few_places
from kd_lightning.store.artifacts import remedy
from kd_lightning.store.files import writing
from kd_lightning.teachers.black_box import QueryTeacher


class Expansion(Protocol):
    """Synthesises images from a few, part after part."""

    def sizes(self, images: int) -> list[int]:
        """Sizes of the parts, for ``images`` images in total."""
        ...

    def __call__(self, context: Context, few: Tensor, images: int, seed: int) -> list[Tensor]:
        """The parts, each uint8 (N, C, H, W), determined by the few images and ``seed``."""
        ...


class FewAsked:
    """``per_class`` images of each class with their labels and, if the method needs them, the teacher's answers.

    With ``expand`` it is those images and ``synthetic`` ones made from them, all with answers and without labels. The
    queried images depend only on ``seed``, not on the seed of the fit.

    Args:
        per_class: real images of each class.
        batch_size: images per batch and rank.
        synthetic: number of images that ``expand`` makes. Without it the few images are repeated to lengthen the epoch
            by this number, so that methods with and without ``expand`` take equally many steps.
        expand: makes them from the few.
        mixup_again: whether to mix each batch again, images and answers alike, without queries; only with ``expand``.
        augment: applied to each batch; the target stays the answer to the original image.
        seed: of the choice of the few and of the images made from them.
    """

    offers = frozenset({"source.images", "source.index", "source.labels", "source.answers"})
    version = 1
    needs = frozenset({"task.classification"})
    quick = True
    """Preparing takes seconds and decides what is asked, so a plan does it."""

    def __init__(
        self,
        *,
        per_class: int,
        batch_size: int,
        synthetic: int = 0,
        expand: Expansion | None = None,
        mixup_again: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.per_class, self.batch_size, self.augment, self.seed = per_class, batch_size, augment, seed
        self.synthetic, self.expand, self.mixup_again = synthetic, expand, mixup_again
        if expand is not None:
            self.offers = self.offers | {"source.synthetic"}

    def sizes(self, num_classes: int) -> list[int]:
        """Sizes of the queried parts: the few, then those made from them."""
        return [self.per_class * num_classes, *(self.expand.sizes(self.synthetic) if self.expand else [])]

    def prepare(self, context: Context) -> TensorLoader:
        """Choose, synthesise and query, or read earlier images and answers.

        Raises:
            DataError: a class has too few images.
            ConfigError: the method trains on labels, which synthesised images lack; and as :func:`ask`.
            BudgetExceeded: ``teacher.budget`` is smaller than the number of images; nothing is queried.
        """
        split = context.real()
        index = few_places(split, self.per_class, seed=self.seed, classes=context.dataset.classes)
        few, labels = split.images[index], split.labels[index]
        context.notes["few_shot"] = index.tolist()
        if self.expand is None:
            places, answers = torch.arange(len(few)), None
            if "teacher" in context.needs:
                ((places, answers),) = self._ask(context, [few])
            again = torch.arange(len(places) + self.synthetic) % len(places)
            return context.serve(
                few[places][again],
                labels[places][again],
                answers=None if answers is None else answers[again],
                whole=self.synthetic > 0,
                batch_size=self.batch_size,
                augment=self.augment,
            )
        if "source.labels" in context.needs:
            raise ConfigError(
                "this method trains on labels, but images made by source.expand have none: set method.label=0, or "
                "leave them out with source.expand=null"
            )
        if self.synthetic < 1:
            raise ConfigError(f"source.synthetic={self.synthetic}: say how many images source.expand is to make")
        if isinstance(context.teacher, QueryTeacher):
            context.teacher.require(sum(self.sizes(len(context.dataset.classes))))
        parts = [few, *self.expand(context, few, self.synthetic, self.seed)]
        context.notes["images_synthesised"] = sum(map(len, parts[1:]))
        answered = self._ask(context, parts)
        return context.serve(
            torch.cat([part[places] for part, (places, _) in zip(parts, answered, strict=True)]),
            answers=torch.cat([answers for _, answers in answered]),
            mix=mixup_again if self.mixup_again else None,
            batch_size=self.batch_size,
            augment=self.augment,
        )

    def _ask(self, context: Context, parts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Positions and answers of each part."""
        context.notes["plan"] = hashlib.sha256("".join(map(pixels, parts)).encode()).hexdigest()
        return [ask(context, part) for part in parts]


def pixels(images: Tensor) -> str:
    """A hash of uint8 images."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def kept_pool(
    context: Context, config: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that ``make`` returns, made once and stored, so that paid answers stay those of these images.

    Args:
        context: of the source.
        config: plain data that determines the tensors.
        make: returns them by name; called only on rank 0.
    """

    def build(folder: Path) -> None:
        with writing(folder):
            save_file({k: v.contiguous() for k, v in make().items()}, folder / "pool.safetensors")

    folder = context.store.obtain("pool", config, build)
    return read_tensors(folder / "pool.safetensors", advice=remedy(folder))


def mixup_again(x: Tensor, t: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix a batch with a permutation of itself: weight ~ U(0, 1), the same for an image and its answer.

    Args:
        x: images (N, C, H, W).
        t: answers usable as logits (N, K); the result holds log-probabilities.
        rng: on their device.
    """
    other = torch.randperm(len(x), generator=rng, device=x.device)
    weight = torch.rand(len(x), generator=rng, device=x.device)
    log_p, log_w, log_rest = t.float().log_softmax(1), weight[:, None].log(), (1 - weight[:, None]).log()
    weight = weight.view(-1, 1, 1, 1)
    return weight * x + (1 - weight) * x[other], torch.logaddexp(log_w + log_p, log_rest + log_p[other])


def made_and_asked(
    context: Context,
    made_of: Mapping[str, Any],
    make: Callable[[], Tensor],
    *,
    batch_size: int,
    augment: Sequence[Augmentation],
) -> TensorLoader:
    """A loader of images that are made once and asked about once, with the teacher's answers.

    Args:
        context: of the source.
        made_of: all that determines the images besides their shape, which is added.
        make: makes them, uint8 (N, C, H, W).
        batch_size: images per batch and rank.
        augment: applied to each batch.
    """
    made_of = {**made_of, "shape": list(context.dataset.image_shape)}
    images = kept_pool(context, made_of, lambda: {"images": make()})["images"]
    context.notes["images_synthesised"] = len(images)
    places, answers = ask(context, images)
    return context.serve(images[places], answers=answers, batch_size=batch_size, augment=augment)
