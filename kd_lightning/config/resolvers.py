"""The resolvers ``${kd.*}`` of configurations; imports no torch."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kd_lightning.config import references
from kd_lightning.config.groups import members
from kd_lightning.errors import ConfigError

NUMBERS, SEVERAL = "numbers", "several"
MULTI_LABEL = "kd_lightning.core.multi_label.MultiLabel"


def register() -> None:
    """Register ``${kd.*}`` with OmegaConf, and overrides below references with Hydra."""
    references.register()
    OmegaConf.register_new_resolver("kd.count_classes", _count_classes, replace=True)
    OmegaConf.register_new_resolver("kd.count_pixel_classes", _count_pixel_classes, replace=True)
    OmegaConf.register_new_resolver("kd.count_labels", _count_labels, replace=True)
    OmegaConf.register_new_resolver("kd.count_named", _count_named, replace=True)
    OmegaConf.register_new_resolver("kd.count_saved", _count_saved, replace=True)
    OmegaConf.register_new_resolver("kd.numbers", _numbers, replace=True)
    OmegaConf.register_new_resolver("kd.labels", _labels, replace=True)
    OmegaConf.register_new_resolver("kd.temperature", _temperature, replace=True)
    OmegaConf.register_new_resolver("kd.first_of", _first_of, replace=True)
    OmegaConf.register_new_resolver("kd.length", _length, replace=True)
    OmegaConf.register_new_resolver("kd.repeat", _repeat, replace=True)
    OmegaConf.register_new_resolver("kd.if", _if, replace=True)
    OmegaConf.register_new_resolver("kd.times", _times, replace=True)
    OmegaConf.register_new_resolver("kd.passes", _passes, replace=True)
    OmegaConf.register_new_resolver("kd.image", _image, replace=True)
    OmegaConf.register_new_resolver("kd.plus", _plus, replace=True)
    OmegaConf.register_new_resolver("kd.merged", _merged, replace=True)
    OmegaConf.register_new_resolver("kd.flips", _flips, replace=True)
    OmegaConf.register_new_resolver("kd.by_size", _by_size, replace=True)
    OmegaConf.register_new_resolver("kd.members", _members, replace=True)
    OmegaConf.register_new_resolver("kd.sweep", _sweep, replace=True)


def _count_classes(root: str) -> int:
    from kd_lightning.data.classes import folder_classes

    return len(folder_classes(root))


def _count_pixel_classes(file: str) -> int:
    from kd_lightning.data.classes import count_pixel_classes

    return count_pixel_classes(file)


def _count_labels(file: str, column: Any, classes: Any, labels: str, separator: str) -> int:
    """Outputs of a network for the labels in a table: one for numbers, else the classes or labels given or found."""
    from kd_lightning.data.label_sets import set_names
    from kd_lightning.data.table_rows import label_names

    if labels == SEVERAL:
        return len(classes or set_names(file, column, separator))
    if isinstance(column, ListConfig | list):
        raise ConfigError(f"data.label_column={list(column)}: columns of several labels: set data.labels=several")
    return 1 if labels == NUMBERS else len(classes or label_names(file, column))


def _count_named(root: str, pattern: str, classes: Any, labels: str) -> int:
    """The same for labels in the names of files."""
    from kd_lightning.data.table_rows import pattern_names

    return 1 if labels == NUMBERS else len(classes or pattern_names(root, pattern))


def _count_saved(root: str, classes: Any) -> int:
    """Classes of a folder that Hugging Face's ``datasets`` saved, given or found."""
    from kd_lightning.data.table_rows import saved_names

    return len(classes or saved_names(root))


def _numbers(labels: str, low: Any, high: Any, unit: str) -> DictConfig | None:
    """The task of labels that are numbers, None where they are classes."""
    if labels not in ("classes", NUMBERS):
        raise ConfigError(f"data.labels={labels}: expected classes or numbers")
    if labels != NUMBERS:
        return None
    if low is None or high is None:
        raise ConfigError("data.labels=numbers: say which there can be, with data.low=... and data.high=...")
    return OmegaConf.create({"_target_": "kd_lightning.core.tasks.Regression", "low": low, "high": high, "unit": unit})


def _labels(labels: str, low: Any, high: Any, unit: str, count: int) -> DictConfig | None:
    """The same, where an image may also have several labels, ``count`` in all."""
    if labels == SEVERAL:
        return OmegaConf.create({"_target_": MULTI_LABEL, "num_classes": count})
    if labels not in ("classes", NUMBERS):
        raise ConfigError(f"data.labels={labels}: expected classes, numbers or several")
    return _numbers(labels, low, high, unit)


def _temperature(task: str | None, of_classes: float) -> float:
    """The temperature of ``kd``: 1 where an image has several labels, which students learn worse at 4."""
    return 1.0 if task == MULTI_LABEL else of_classes


def _first_of(value: Any, other: Any) -> Any:
    return other if value is None else value


def _length(value: Any, other: int) -> int:
    return other if value is None else len(value)


def _sweep() -> str | None:
    """The folder name of the sweep that this job belongs to, under any launcher; None outside a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if os.environ.get("KD_SWEEP"):
        return os.environ["KD_SWEEP"]
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return None


def _repeat(value: Any, times: int) -> ListConfig:
    return OmegaConf.create([value] * times)


def _if(condition: bool, yes: Any, no: Any) -> Any:
    return yes if condition else no


def _times(value: Any, factor: float) -> Any:
    """A number, or each of a list, times ``factor``."""
    if isinstance(value, ListConfig | list):
        return OmegaConf.create([_times(each, factor) for each in value])
    return type(value)(value * factor)


def _passes(updates: int, images: int, batch_size: int) -> int:
    """Epochs over ``images`` that make about ``updates`` full batches; at least one."""
    return max(1, round(updates / max(1, images // batch_size)))


def _image(channels: int, size: Any) -> ListConfig:
    """[C, H, W] of images whose ``size`` is one number, or height and width."""
    both = list(size) if isinstance(size, ListConfig | list) else [size, size]
    return OmegaConf.create([channels, *both])


def _plus(value: float | None, more: float | None) -> float:
    if value is None or more is None:
        raise ConfigError("where all there are were asked for (null) nothing can be added: say how many")
    return value + more


def _by_size(size: Any, small: Any, middle: Any, large: Any) -> Any:
    """The value for images whose shorter side is about 32, 64 or 128 pixels, whichever is nearest."""
    if isinstance(size, ListConfig | list) and all(isinstance(side, int) for side in size):
        size = min(size, default=0)
    if not isinstance(size, int) or size < 48:  # an invalid size is reported elsewhere
        return small
    return middle if size < 96 else large


def _merged(node: DictConfig, changes: DictConfig) -> DictConfig:
    plain: Any = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.create({**plain, **changes})


def _flips(augment: ListConfig) -> ListConfig:
    """The flips among augmentations: a generator would learn the black borders that crops leave."""
    return OmegaConf.create([each for each in augment if str(each.get("_target_")).endswith("Flip")])


def _members(group: str, indent: int = 0, width: int = 98) -> str:
    """The members of a group for ``--help``, including the user's own; folders with equal members share a line."""
    folders: dict[str, list[str]] = {}
    own = set(members(group)) - (set(members("network")) if group in ("teacher", "student") else set())
    for member in sorted(own):
        folder, _, name = member.rpartition("/")
        folders.setdefault(folder, []).append(name)
    alike: dict[str, list[str]] = {}
    for folder, names in folders.items():
        alike.setdefault(", ".join(names), []).append(folder)
    lines = [names if named == [""] else f"{', '.join(named)} / {names}" for names, named in alike.items()]
    wrapped = (textwrap.fill(line, width - indent, break_on_hyphens=False) for line in lines)
    return "\n".join(wrapped).replace("\n", "\n" + " " * indent)


def conf_dir() -> Path:
    """The folder of the configuration groups: inside an installed package, or next to it in a checkout."""
    here = Path(__file__).parents[1]
    return next(folder for folder in (here / "conf", here.parent / "conf") if (folder / "run.yaml").is_file())
