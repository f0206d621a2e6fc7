"""Loaded data sets: uint8 images and labels in up to three fixed parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.sides import Size, sides
from kd_lightning.core.tasks import Classification, Regression, Task
from kd_lightning.errors import DataError


@dataclass(frozen=True)
class Split:
    """One part of a set: ``images`` uint8 (N,C,H,W) and ``labels``.

    Labels are (N,), int64 classes or float32 in their unit; (N,K) of 0 and 1, uint8, where an image has several; or
    maps (N,H,W), uint8. None where nobody gave any.
    """

    images: Tensor
    labels: Tensor = None  # type: ignore[assignment]  # what needs them asks ``labelled`` first

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A loaded set; a part that does not exist is ``None``.

    Args:
        name: as in the config, such as ``mnist``.
        classes: class names in the order of the labels; empty where the labels are numbers.
        train: the training images, without ``val``.
        val: images held out of training, for model selection and curves.
        test: images for the reported number only.
        layout: on disk: ``sklearn``, ``torchvision``, ``folders`` or ``none``.
        encoding: of the stored pixels: ``raw``, ``png``, ``jpeg`` ... (tables note JPEG, which loses detail).
        skipped: images left out because they could not be decoded.
        unread: how many files of each ending are of no kind that is read.
        found: what was found on disk, in words, where folders decide it.
        doubts: lines about what was left out there or may have been misread.
        shape: (C,H,W), needed where there is no part to read it from.
        task: the meaning of the labels, where they are no classes.
        unlabelled: uint8 (N,C,H,W), training images without labels of another domain, to which ``test`` then belongs.

    Raises:
        DataError: a label is outside the classes, or outside the range of the task.
    """

    name: str
    classes: list[str]
    train: Split | None
    val: Split | None
    test: Split | None
    layout: str
    encoding: str
    skipped: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    found: str = ""
    doubts: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    task: Task = None  # type: ignore[assignment]  # never None after __post_init__
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        task = self.task or Classification(len(self.classes))
        object.__setattr__(self, "task", task)
        for part in ("train", "val", "test"):
            if (split := getattr(self, part)) is None or not split.labelled:
                continue
            if isinstance(task, Regression | MultiLabel):
                task.check_labels(f"{self.name}/{part}", split.labels)
            elif isinstance(task, Segmentation):
                task.check_labels(f"{self.name}/{part}", split.labels, split.images)
            else:
                check_labels(f"{self.name}/{part}", split.labels, len(self.classes))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W) of every image."""
        for split in (self.train, self.val, self.test):
            if split is not None:
                channels, height, width = split.images.shape[1:]
                return channels, height, width
        assert self.shape is not None
        return self.shape


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside 0 .. num_classes - 1.

    Args:
        name: the set, for the message.
        labels: integers, any shape.
        num_classes: how many classes there are.

    Raises:
        DataError: a label is outside; the message has the first one and how many images have it.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong) == 0:
        return
    label = int(wrong[0])
    count = int((wrong == label).sum())
    raise DataError(
        f"{name}: label {label} on {count} image{'s' if count > 1 else ''}, but there are {num_classes} "
        f"classes (labels 0 to {num_classes - 1}). Correct the labels or give all classes"
    )


def hold_out(train: Split, size: int | float, *, seed: int = 0) -> tuple[Split, Split]:
    """Split ``train`` into (train, val), stratified by class; the same split for the same seed.

    Both keep the original order. A class with two or more images keeps at least one for training if ``size``
    allows it. Images whose labels are numbers or maps count as one class.

    Args:
        train: what to split.
        size: images to hold out: their number (int) or their share (float in (0,1)).
        seed: of the choice within each class.

    Raises:
        DataError: ``size`` leaves one of the two parts without images.
    """
    held = held_out(train.labels if train.labelled else None, len(train), size, seed=seed)
    kept, left = (Split(train.images[rows], train.labels[rows] if train.labelled else None) for rows in (~held, held))  # type: ignore[arg-type]
    return kept, left


def held_out(labels: Tensor | None, total: int, size: int | float, *, seed: int = 0, key: str = "val") -> Tensor:
    """Which of ``total`` images :func:`hold_out` takes, bool (total,).

    Args:
        labels: (total,) classes, which are then held out in proportion; numbers, maps or None count as one class.
        total: number of images.
        size: their number (int) or their share (float in (0,1)).
        seed: of the choice within each class.
        key: setting of ``data`` that gives the size, for the message.

    Raises:
        DataError: ``size`` leaves one of the two parts without images.
    """
    wanted = round(size * total) if isinstance(size, float) else size
    if not 0 < wanted < total:
        raise DataError(
            f"cannot hold out {size} of {total} training images: choose data.{key} as a share between 0 and 1, "
            f"as a number from 1 to {total - 1}, or 0 for none"
        )
    generator = torch.Generator().manual_seed(seed)
    stratified = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    classes = labels if labels is not None and stratified else torch.zeros(total, dtype=torch.long)
    counts = torch.bincount(classes)
    exact = [int(count) * wanted / total for count in counts]
    quota = [int(share) for share in exact]
    while sum(quota) < wanted:  # largest remainder first; a class's last image only when all others are taken
        room = [c for c in range(len(quota)) if quota[c] < counts[c]]
        best = max(room, key=lambda c: (quota[c] + 1 < counts[c], exact[c] - quota[c]))
        quota[best] += 1
    held = torch.zeros(total, dtype=torch.bool)
    for label, take in enumerate(quota):
        members = (classes == label).nonzero().squeeze(1)
        held[members[torch.randperm(len(members), generator=generator)[:take]]] = True
    return held


def fit_to(images: Tensor, *, size: Size, channels: int) -> Tensor:
    """Convert uint8 images to (N,channels,height,width), where ``size`` is both or the two of them.

    Grey is 0.299 R + 0.587 G + 0.114 B; grey becomes RGB by repetition. Images are resized bilinearly with
    antialiasing, in the same fixed-point arithmetic as Pillow's (differences of at most one level of 256).
    """
    if channels == 1 and images.shape[1] == 3:
        images = torch.cat([_grey(chunk) for chunk in images.split(1024)])
    if images.shape[-2:] != sides(size):
        images = F.interpolate(images, size=sides(size), mode="bilinear", antialias=True)
    if channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    return images


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.int().unbind(1)
    # Pillow's fixed-point weights, so that converting a file and converting an array give the same bits.
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8).unsqueeze(1)
