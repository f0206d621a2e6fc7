"""Loads the data set of a composition."""

from __future__ import annotations

import inspect

from kd_lightning.config.composition import Data
from kd_lightning.config.node import Node, located
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.load import refuse_other_classes
from kd_lightning.store.artifacts import Store


def load_data(data: Data, store: Store, source: Node | None = None) -> Dataset:
    """Load the data set of a composition; decoded folders of images are cached in the store.

    Args:
        data: of the composition.
        store: caches decoded images.
        source: the student's; one with a second domain brings its images, and its test in place of the data's own.
    """
    takes_store = "store" in inspect.signature(located(data.load.target)).parameters
    dataset = data.load.build(**({"store": store} if takes_store else {}))
    refuse_other_classes(dataset, data.num_classes)
    if source is not None and hasattr(located(source.target), "moved"):
        dataset = source.build().moved(dataset, store)
    return dataset
