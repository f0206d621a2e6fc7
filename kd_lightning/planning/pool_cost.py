"""Estimates the cost of drawing a pool from a conditional generator, from a few of its images."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from kd_lightning.config.node import Node
from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import Classification
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool_choice import choice
from kd_lightning.sources.synthetic import Synthetic
from kd_lightning.teachers.white_box import FrozenTeacher

TRIED, LOWEST = 500, 0.05
"""Images drawn and answered for the estimate, and the lowest acceptance rate assumed for a density ratio."""

FEW_LABELS = 16
"""Labels of the small regression pool that a fit is timed on."""


@dataclass(frozen=True)
class Outlook:
    """Cost of a pool: seconds to draw it and its bytes; and of the teacher's answers: images, seconds, bytes."""

    drawing: float
    size: int
    asked: int
    answering: float
    answers_size: int


@torch.no_grad()
def outlook(source: Synthetic, context: Context) -> Outlook:
    """Estimate the cost of a pool from a few images of the first label; ``source`` must have read its weights.

    The number of images that a density ratio accepts is known only once it is trained; before, it is a guess.
    """
    wanted = source.wanted(context)
    draw, ratio = source.of_label(context, wanted[0], torch.Generator(context.device).manual_seed(source.seed))
    few = min(TRIED, source.draw if ratio else source.per_label)
    images, each = draw(few), source.per_label
    if ratio is not None:
        ratios = ratio(images)
        rate = max(LOWEST, float(ratios.mean() / ratios.max().clamp_min(1e-12)))
        each = source.burn_in + source.draw * math.ceil(source.per_label / rate / source.draw)
    start = _now(context)
    images = draw(few)
    if ratio is not None:
        ratio(images)
    per_image = (_now(context) - start) / few
    number = len(wanted) * source.per_label
    told, answering = 0, 0.0
    if source.keep is not None or source.relabel:
        told = number
        if isinstance(context.teacher, FrozenTeacher):
            spent, start = context.teacher.asked, _now(context)
            predict(context.teacher, images.mul(255).byte(), device=context.device)
            answering, context.teacher.asked = (_now(context) - start) / few * number, spent
    pixels = images[0].numel()
    outputs = context.dataset.task.outputs
    return Outlook(len(wanted) * each * per_image, number * (pixels + 8), told, answering, 4 * outputs * told)


def shortened(source: Node, pool: Synthetic, context: Context) -> tuple[Node, float]:
    """A source with a pool of about one batch, neither subsampled nor filtered.

    Args:
        source: the composition's source.
        pool: the object built from it.
        context: the fit's context.

    Returns:
        The source of the small pool, and the factor by which an epoch on the whole pool is longer.

    Raises:
        DataError: the whole pool would be smaller than ``source.images``.
    """
    wanted, batch = pool.wanted(context), pool.batch_size
    real = len(context.real()) if pool.real else 0
    number = len(wanted)
    if source.get("labels") is not None:
        number = min(number, FEW_LABELS)
        source = source.replace(labels=number)
    each = -(-batch // number)
    source = source.replace(per_label=each, subsample=False, processing=None, keep=None, relabel=False, images=None)
    more = _batches(real + _seen(pool, wanted, context), batch) / _batches(real + number * each, batch)
    return source, more


def _seen(pool: Synthetic, wanted: torch.Tensor, context: Context) -> int:
    """Pool images that the student sees, assuming that all of the teacher's errors differ and none is unanswered."""
    each = isinstance(context.dataset.task, Classification)
    number, groups = (pool.per_label, len(wanted)) if each else (len(wanted) * pool.per_label, 1)
    if pool.keep is not None:
        number = max(1, math.ceil((number - 1) * pool.keep))
    if pool.images is None:
        return number * groups
    return len(choice(torch.arange(groups).repeat_interleave(number), pool.images, torch.Generator()))


def _batches(images: int, batch: int) -> int:
    return images // batch if images >= batch else 1


def _now(context: Context) -> float:
    if context.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
