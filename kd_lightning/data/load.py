"""The data set that a composition names."""

from __future__ import annotations

import hashlib
import inspect
import json

from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig

from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import DataError, UserError
from kd_lightning.store.artifacts import Store


def load_data(cfg: DictConfig, store: Store) -> Dataset:
    """The data set that the composition names; folders of images keep their decoded form in the store."""
    takes_store = "store" in inspect.signature(get_method(cfg.data.load._target_)).parameters
    try:
        dataset = instantiate(cfg.data.load, _convert_="all", **({"store": store} if takes_store else {}))
    except InstantiationException as error:  # Hydra's wrapping hides what the user can mend
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None
    refuse_other_classes(dataset, cfg.data.num_classes)
    return dataset


def refuse_other_classes(dataset: Dataset, num_classes: int) -> None:
    """Let a data set pass that has as many classes as its composition says.

    Raises:
        DataError: it has others.
    """
    outputs = dataset.task.outputs
    if outputs != num_classes:
        has = f"{outputs} classes" if dataset.classes else "numbers as labels, for which a network has one output"
        raise DataError(f"data.num_classes={num_classes}, but {dataset.name} has {has}: set data.num_classes={outputs}")


def dataset_digest(dataset: Dataset) -> str:
    """A hash of every pixel and label, and of what they mean."""
    said = [dataset.name, dataset.classes or dataset.task.described(), dataset.image_shape]
    total = hashlib.sha256(json.dumps(said).encode())
    for split in (dataset.train, dataset.val, dataset.test):
        if split is not None:
            total.update(split.images.contiguous().numpy().data)
            total.update(split.labels.contiguous().numpy().data)
    return total.hexdigest()[:12]
