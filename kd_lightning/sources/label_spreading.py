"""Labels spread from a few images to all others over a graph of nearest neighbours (Zhou et al., NeurIPS 2003).

A control of methods that learn from few labels: it takes no generator, and on small images it is hard to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.semi_supervised import LabelSpreading

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.sources.context import Context
from kd_lightning.sources.real import few_places


class SpreadLabels:
    """Every training image that a graph on pixels reaches, labelled by it from ``per_class`` labels of each class.

    Args:
        per_class: labelled images of each class, those of ``source=few_shot`` with the same ``seed``.
        batch_size: images per batch and rank.
        neighbours: of an image in the graph.
        alpha: share of its label that an image takes from its neighbours, in (0, 1).
        augment: applied to each batch in this order.
        seed: of the choice.
    """

    needs = frozenset({"task.classification"})
    offers = frozenset({"source.images", "source.labels"})

    def __init__(
        self,
        *,
        per_class: int,
        batch_size: int,
        neighbours: int = 7,
        alpha: float = 0.2,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.per_class, self.batch_size, self.neighbours, self.alpha = per_class, batch_size, neighbours, alpha
        self.augment, self.seed = augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """A loader of the images with the labels found; notes the share of right ones, and how many got none.

        Raises:
            DataError: a class has too few images.
        """
        split = context.real()
        places = few_places(split, self.per_class, seed=self.seed, classes=context.dataset.classes)
        known = torch.full_like(split.labels, -1)
        known[places] = split.labels[places]
        spread = LabelSpreading(kernel="knn", n_neighbors=self.neighbours, alpha=self.alpha, max_iter=1000)
        spread.fit(split.images.flatten(1).float().div(255).numpy(), known.numpy())
        reached = torch.from_numpy(spread.label_distributions_.sum(1) > 0)  # others would be given the first class
        images, found = split.images[reached], torch.from_numpy(spread.transduction_).long()[reached]
        context.notes["spread_labels_right"] = float((found == split.labels[reached]).float().mean())
        context.notes["spread_labels_missing"] = int((~reached).sum())
        return context.serve(images, found, batch_size=self.batch_size, augment=self.augment)
