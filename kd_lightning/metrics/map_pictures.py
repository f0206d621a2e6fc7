"""Pictures of a student's label maps at the end of a run: overlays, IoU by class, confusions of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kd_lightning.core.palette import coloured, colours
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.tracking.backends import Dashboards
from kd_lightning.tracking.image_grids import framed, matrix, save, shares

SHOWN = 6
"""Images with overlays."""
STRENGTH = 0.6
"""Share of the classes' colours in an overlay."""


def draw_maps(folder: Path, boards: Dashboards, dataset: Dataset, masks: Mapping[str, Tensor]) -> None:
    """Write ``overlays.png``, ``iou.png``, ``confusion_labels.png`` and, with a teacher, ``confusion_teacher.png``.

    Args:
        folder: where to write them.
        boards: dashboards that get them too, W&B the overlays as masks that can be switched on and off.
        dataset: has task, class names and test images.
        masks: of the test images, uint8 (N, H, W), by name: ``student``, and ``teacher`` where its answers are known.
    """
    task, test, classes = dataset.task, dataset.test, dataset.classes
    assert isinstance(task, Segmentation)
    assert test is not None
    chosen = spread(test, task)
    shown = {"label": test.labels[chosen], **{name: masks[name][chosen] for name in reversed(masks)}}
    picture = overlays(test.images[chosen], shown, classes)
    save(picture, folder / "overlays.png")
    boards.masks("overlays", picture, test.images[chosen], shown, classes)
    measured = {name: class_ious(pixel_confusion(test.labels, found, len(classes))) for name, found in masks.items()}
    ious = shares(measured, classes, f"IoU by class on {len(test):,} test images")
    save(ious, folder / "iou.png")
    boards.picture("iou", ious, None)
    others = {
        "labels": ("label", test.labels),
        **({"teacher": ("teacher", masks["teacher"])} if "teacher" in masks else {}),
    }
    for name, (rows, true) in others.items():
        counts = pixel_confusion(true, masks["student"], len(classes))
        alike = float(counts.diagonal().sum() / counts.sum().clamp(min=1))
        title = f"Student against {name}: {alike:.1%} of {int(counts.sum()):,} pixels alike; cells in % of their row"
        picture = matrix(percent(counts), classes, title, rows=rows, columns="student")
        save(picture, folder / f"confusion_{name}.png")
        boards.picture(f"confusion/{name}", picture, None)


def percent(counts: Tensor) -> Tensor:
    """Rows of counts as whole percents: pixels are too many to read."""
    return (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).round().long()


def spread(split: Split, task: Segmentation, most: int = SHOWN) -> Tensor:
    """Places of up to ``most`` images, one of each equal stretch of the set: that with most classes not yet shown."""
    counts = [torch.bincount(labels.flatten().long(), minlength=256) for labels in split.labels]
    there = torch.stack(counts)[:, : task.num_classes] > 0
    lacking, chosen = torch.ones(task.num_classes, dtype=torch.bool), list[int]()
    for stretch in torch.arange(len(split)).tensor_split(min(most, len(split))):
        gain = (there & lacking)[stretch].sum(1) * 1000 + there[stretch].sum(1)
        chosen.append(int(stretch[gain.argmax()]))
        lacking &= ~there[chosen[-1]]
    return torch.tensor(chosen)


def overlays(images: Tensor, masks: Mapping[str, Tensor], classes: Sequence[str]) -> Image.Image:
    """A row for each image: itself, then overlaid with each of the maps, and a legend of the classes' colours.

    Args:
        images: uint8 (N, C, H, W), grey or RGB.
        masks: name of the column -> maps (N, H, W).
        classes: names.
    """
    plain = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    columns = {"image": plain}
    for name, found in masks.items():
        known = (found < len(classes))[:, None]
        mixed = (1 - STRENGTH) * plain.float() + STRENGTH * coloured(found, len(classes)).float()
        columns[name] = torch.where(known, mixed.round(), plain.float()).to(torch.uint8)
    return framed(columns, dict(zip(classes, colours(len(classes)).tolist(), strict=True)))
