"""Whether a data set is the one that was asked for, and its digest."""

from __future__ import annotations

import hashlib
import json

from kd_lightning.core.mapped import let_go
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import DataError


def refuse_other_classes(dataset: Dataset, num_classes: int) -> None:
    """Check that a data set has ``num_classes`` classes.

    Raises:
        DataError: it has a different number.
    """
    outputs = dataset.task.outputs
    if outputs != num_classes:
        has = f"{outputs} classes" if dataset.classes else "numbers as labels, for which a network has one output"
        raise DataError(f"data.num_classes={num_classes}, but {dataset.name} has {has}: set data.num_classes={outputs}")


def dataset_digest(dataset: Dataset) -> str:
    """Hash of all pixels and labels, and of their meaning (classes or task)."""
    said = [dataset.name, dataset.classes or dataset.task.described(), dataset.image_shape]
    if isinstance(dataset.task, Segmentation | MultiLabel):  # the same maps mean something else with another void
        said.append(dataset.task.described())
    total = hashlib.sha256(json.dumps(said).encode())
    for split in (dataset.train, dataset.val, dataset.test):
        if split is not None:
            for images in split.images.split(1024):
                total.update(images.contiguous().numpy().data)
                let_go(images)
            if split.labelled:
                total.update(split.labels.contiguous().numpy().data)
    if dataset.unlabelled is not None:
        total.update(dataset.unlabelled.contiguous().numpy().data)
    return total.hexdigest()[:12]
