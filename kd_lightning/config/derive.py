"""One composition, and those that follow from it: a teacher's own training, a control, a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

REPLACED = ("source", "student", "method", "init")
MERGED = ("trainer", "teacher", "data")


def variant(cfg: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    """``cfg`` with some of its words exchanged.

    ``source``, ``student``, ``method`` and ``init`` are replaced whole, ``trainer`` key by key. ``main`` keeps
    the student's own settings, resolved, so that a control can say ``${main.method.optimizer}``.

    Args:
        cfg: the composition.
        changes: word -> its new node; unresolved interpolations are resolved in the new composition.
    """
    new = cfg.copy()
    with open_dict(new):
        new.main = OmegaConf.to_container(cfg.main, resolve=True)
        for word, node in changes.items():
            if word in MERGED and node is not None:
                new[word] = OmegaConf.merge(new[word], node)
            else:
                new[word] = node
    return new
