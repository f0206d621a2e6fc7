"""Images about which the teacher is queried once; its answers are counted and stored."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.distributed import collectives
from kd_lightning.errors import ConfigError, TeacherError
from kd_lightning.sources.context import Context
from kd_lightning.teachers.answer_types import extremes
from kd_lightning.teachers.black_box import QueryTeacher


def require(context: Context, images: int) -> None:
    """Check, before they are made, that this many images fit into the teacher's budget.

    Raises:
        BudgetExceeded: ``teacher.budget`` is smaller.
    """
    if isinstance(context.teacher, QueryTeacher):
        context.teacher.require(images)


def ask(context: Context, images: Tensor, *, called: str = "images") -> tuple[Tensor, Tensor]:
    """The teacher's answers to images, queried now or earlier.

    Args:
        context: of the source.
        images: uint8 (N, C, H, W), exactly as training will see them.
        called: name of these images, for sources that query several kinds; the result counts abstentions by it.

    Returns:
        Positions (M,) int64 of the images that were answered, and the answers (M, K), usable as logits.

    Raises:
        BudgetExceeded: ``teacher.budget`` is smaller than the number of images.
        ConfigError: there is no teacher.
        TeacherError: it failed on more of them than ``teacher.min_coverage`` allows, or answered none.
    """
    teacher = context.teacher
    if teacher is None:
        raise ConfigError("this source queries a teacher, but teacher=none: choose one with teacher=NAME")
    context.notes["queries"] = context.notes.get("queries", 0) + len(images)
    if not isinstance(teacher, QueryTeacher):
        spent = teacher.asked
        answers = predict(teacher, images, device=context.device)
        teacher.asked = spent + len(images)  # counted once, though every rank computes them
        count_classes(context, called, answers)
        return torch.arange(len(images)), answers
    told = teacher.about(images)
    noted = context.notes.setdefault("answers", {}).setdefault(called, {"asked": 0, "abstained": 0, "failed": 0})
    for name, count in {"asked": len(images), "abstained": told.abstained, "failed": told.failed}.items():
        noted[name] += count
    coverage = 1 - told.failed / max(1, len(images))
    if coverage < teacher.min_coverage:
        raise TeacherError(
            f"the teacher failed on {told.failed} of {len(images)} {called}, which leaves {coverage:.4f} of them, less "
            f"than teacher.min_coverage={teacher.min_coverage:g}: lower that to train on the rest"
        )
    if len(told.positions) == 0:
        raise TeacherError(f"the teacher answered none of {len(images)} {called}: there is nothing to train on")
    if len(told.positions) < len(images) and collectives.rank() == 0:
        print(f"training on {len(told.positions):,} of {len(images):,} {called}: "
              f"the teacher abstained on {told.abstained:,} and failed on {told.failed:,}")  # fmt: skip
    count_classes(context, called, told.answers)
    return told.positions, told.answers


def count_classes(context: Context, called: str, answers: Tensor) -> None:
    """Note how many images the teacher put in each class, beside those counted under that name before.

    Answers (N, K) of one number or of pixels have no class.
    """
    if isinstance(context.dataset.task, MultiLabel):
        counts = (answers > 0).sum(0).tolist()
    elif answers.dim() == 2 and answers.shape[1] > 1:
        counts = answers.argmax(1).bincount(minlength=answers.shape[1]).tolist()
    else:
        return
    noted = context.notes.setdefault("class_counts", {})
    before = noted[called]["each"] if called in noted else [0] * len(counts)
    noted[called] = extremes([a + b for a, b in zip(before, counts, strict=True)])
