"""A labelled data set and another domain whose training images are used without their labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import DataError


def moved_to(source: Dataset, target: Dataset) -> Dataset:
    """The source's data with the target's training images without labels, tested on the target's test images.

    The validation images stay the source's, whose labels training may see. Classes are matched by name. A target
    without a test part is tested on the images it is trained on, as in the papers on Office-31.

    Args:
        source: the domain with labels.
        target: the other one; the labels of its training images are not read, unless it has no test part.

    Raises:
        DataError: images of different size or channels, labels that are no classes, target classes that the source
            lacks, or a part that is missing.
    """
    if not source.classes or not target.classes:
        raise DataError(f"source.target: the labels of {(target if source.classes else source).name} are no classes")
    if source.train is None or target.train is None:
        without = source.name if source.train is None else f"{target.name} (source.target)"
        raise DataError(f"{without} has no training images, but two domains need those of both: add a train folder")
    if source.image_shape != target.image_shape:
        ours, theirs = ("x".join(map(str, each.image_shape)) for each in (source, target))
        raise DataError(
            f"source.target: {target.name} has images of {theirs}, but data={source.name} of {ours} (channels, height, "
            "width). Set source.target.size=${data.size} and source.target.channels=${data.channels}"
        )
    if lacking := [name for name in target.classes if name not in source.classes]:
        raise DataError(
            f"source.target: {target.name} has classes that the labelled {source.name} lacks, so that nobody can learn "
            f"them: {', '.join(lacking)}. Leave them out of the target, or add labelled images of them"
        )
    judged = target.test or target.train
    numbers = torch.tensor([source.classes.index(name) for name in target.classes])
    return replace(
        source,
        name=f"{source.name} to {target.name}",
        test=Split(judged.images, numbers[judged.labels]),
        unlabelled=target.train.images,
    )
