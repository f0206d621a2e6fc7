"""What the student takes for what, at the end of a run: against the labels and against the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from kd_lightning.dashboards import Boards
from kd_lightning.inspection import confusion
from kd_lightning.pictures import matrix, save


def draw_confusions(
    folder: Path, boards: Boards, classes: Sequence[str], student: Tensor, labels: Tensor, teacher: Tensor | None
) -> None:
    """Write ``confusion_labels.png`` and, where the teacher's answers are known, ``confusion_teacher.png``.

    Args:
        folder: where they go.
        boards: who is shown them too.
        classes: their names.
        student: outputs on the test images, (N, K).
        labels: (N,).
        teacher: outputs on the same images, (N, K), or None.
    """
    said = student.argmax(1).cpu()
    others = {"labels": ("label", labels.cpu())}
    if teacher is not None:
        others["teacher"] = ("teacher says", teacher.argmax(1).cpu())
    for name, (rows, true) in others.items():
        counts = confusion(said, true, len(classes))
        same = f"{int(counts.diagonal().sum()):,} of {len(said):,} test images alike"
        picture = matrix(counts, classes, f"Student against {name}: {same}", rows=rows, columns="student says")
        save(picture, folder / f"confusion_{name}.png")
        boards.confusion(f"confusion/{name}", picture, true, said, classes)
