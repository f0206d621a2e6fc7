"""Statistics of generated images that show whether their generator has collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.core.tasks import Regression


def least_entropy(answers: Tensor) -> float:
    """The entropy of the mean prediction, as a fraction of ln C, below which a generator is taken to have collapsed.

    Half for classes (N, C), which a data set has about equally often. The pixels of scenes are not like that: those of
    CamVid's test labels reach 0.76, of digits strewn on a ground 0.36. For maps (N, C, H, W) it is 0.1, where with 11
    classes 96.5 % of all pixels are of one class.

    Args:
        answers: the teacher's logits.
    """
    return 0.1 if answers.dim() == 4 else 0.5


def class_counts(answers: Tensor) -> Tensor:
    """How often each class is the likeliest, (C,); of logits (N, C), or (N, C, H, W) where each pixel counts."""
    return torch.bincount(answers.argmax(1).flatten(), minlength=answers.shape[1])


@torch.no_grad()
def generator_health(images: Tensor, logits: Tensor, numbers: Regression | None = None) -> dict[str, float]:
    """Statistics of a batch of generated images that show whether the generator has collapsed.

    Args:
        images: (N, C, H, W) in data units.
        logits: the teacher's answers, (N, K) or (N, K, H, W).
        numbers: the task, for regression.

    Returns:
        ``entropy`` of the mean prediction over the batch, and over its pixels, as a fraction of ln K and mean
        ``confidence``, or for regression ``mean`` and ``deviation`` of the answers in their unit; and ``spread``: the
        standard deviation over the batch, averaged over pixels, in data units.
    """
    if numbers is not None:
        said = numbers.numbers(logits)
        three = torch.stack([said.mean(), said.std(), images.float().std(0).mean()])
        return dict(zip(("mean", "deviation", "spread"), three.tolist(), strict=True))
    probs = logits.float().softmax(1).movedim(1, -1).flatten(0, -2)
    entropy = torch.special.entr(probs.mean(0)).sum() / math.log(probs.shape[1])
    values = torch.stack([entropy, probs.max(1).values.mean(), images.float().std(0).mean()])
    return dict(zip(("entropy", "confidence", "spread"), values.tolist(), strict=True))
