"""The data set that a composition names."""

from __future__ import annotations

import inspect

from kd_lightning.config.composition import Data
from kd_lightning.config.node import located
from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load_data(data: Data, store: Store) -> Dataset:
    """The data set that a composition names; folders of images keep their decoded form in the store."""
    takes_store = "store" in inspect.signature(located(data.load.target)).parameters
    dataset = data.load.build(**({"store": store} if takes_store else {}))
    outputs = dataset.task.outputs
    if outputs != data.num_classes:
        has = f"{outputs} classes" if dataset.classes else "numbers as labels, for which a network has one output"
        raise DataError(
            f"data.num_classes={data.num_classes}, but {dataset.name} has {has}: set data.num_classes={outputs}"
        )
    return dataset
