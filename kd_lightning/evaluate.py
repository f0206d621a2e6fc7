"""``kd-eval``: a student measured on other data, without any training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tabulate import tabulate

from kd_lightning import resolvers
from kd_lightning.artifacts import Store
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.errors import UserError
from kd_lightning.export import Student, load_student
from kd_lightning.inference import predict

READ = ("data", "artifacts", "trainer.accelerator")


@dataclass(frozen=True)
class Evaluation:
    """What a student scored.

    Args:
        images: which they were, such as ``test images of digits``.
        n: their number.
        accuracy: as a fraction.
        per_class: class name -> (number of images, accuracy or None where there is no image).
        note: how classes were matched, where that was not by equal names in equal order.
    """

    images: str
    n: int
    accuracy: float
    per_class: dict[str, tuple[int, float | None]]
    note: str = ""


def compose_data(overrides: Sequence[str], card: dict[str, Any], config_dirs: Sequence[str] = ()) -> DictConfig:
    """The composition of ``data=...`` and further overrides, in the size and channels that the student takes.

    Args:
        overrides: as ``kd-lightning`` takes them; ``data=NAME`` is required.
        card: of the student.
        config_dirs: further folders of groups.

    Raises:
        UserError: lists every override that is wrong, or a size that the student does not take.
    """
    from kd_lightning.check import faults, key_of
    from kd_lightning.composition import read, refusal

    channels, size, _ = card["image_shape"]
    typed = {o.lstrip("+~").partition("=")[0]: o for o in overrides}
    if stray := [o for key, o in typed.items() if not any(key == r or key.startswith(f"{r}.") for r in READ)]:
        raise UserError(f"{stray[0]}: nothing is trained here, kd-eval reads data and trainer.accelerator alone")
    if "data" not in typed:
        raise UserError("say which data: data=NAME, as kd-lightning takes it, such as data=image_folder data.root=DIR")
    wanted = {"data.size": size, "data.channels": channels, "data.mean": card["mean"], "data.std": card["std"]}
    for key in ("data.size", "data.channels"):
        if key in typed and typed[key].partition("=")[2] != str(wanted[key]):
            raise UserError(f"{typed[key]}: the student takes {key.partition('.')[2]} {wanted[key]}; leave {key} out")
    resolvers.register()
    found = read([*overrides, *(f"{k}={v}" for k, v in wanted.items() if k not in typed)], config_dirs)
    wrong = [line for line in faults(found.cfg) if key_of(line).partition(".")[0] == "data"]
    named = [key_of(line) for line in wrong]
    lines = found.problems + wrong
    for key, override in found.unset.items():
        if not any(key == name or key.startswith(f"{name}.") for name in named):
            lines.append(f"{key}: no file sets it, so type +{override}")
    if lines:
        raise refusal(list(dict.fromkeys(lines)))
    return found.cfg


def evaluate_on(student: Student, cfg: DictConfig) -> Evaluation:
    """Measure a student on the test part of ``cfg.data``, or on all of it where there is none.

    Raises:
        UserError: another number of classes, no image, or data that cannot be loaded.
    """
    from kd_lightning.data.load import load_data
    from kd_lightning.fitting import device_of

    card = student.card
    if cfg.data.num_classes != len(card["classes"]):
        raise UserError(f"the student knows {len(card['classes'])} classes, these data have {cfg.data.num_classes}")
    dataset = load_data(cfg, Store(cfg.artifacts.root))
    split, kind = _measured(dataset)
    channels, size, _ = card["image_shape"]
    split, note = _matched(replace(split, images=fit_to(split.images, size=size, channels=channels)), dataset, card)
    right = predict(student, split.images, device=device_of(cfg)).argmax(1) == split.labels
    count = torch.bincount(split.labels, minlength=len(card["classes"])).tolist()
    hits = torch.bincount(split.labels[right], minlength=len(card["classes"])).tolist()
    return Evaluation(
        images=f"{kind} of {dataset.name}",
        n=len(split),
        accuracy=sum(hits) / len(split),
        per_class={c: (n, h / n if n else None) for c, n, h in zip(card["classes"], count, hits, strict=True)},
        note=note,
    )


def _measured(dataset: Dataset) -> tuple[Split, str]:
    if dataset.test is not None:
        return dataset.test, "test images"
    parts = [part for part in (dataset.train, dataset.val) if part is not None]
    if not parts:
        raise UserError(f"data={dataset.name} holds no image to measure on")
    everything = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return everything, "images (there is no test part, so all)"


def _matched(split: Split, dataset: Dataset, card: dict[str, Any]) -> tuple[Split, str]:
    """The split with its labels as the student numbers them, and a word on how they were matched."""
    ours, theirs = card["classes"], dataset.classes
    if ours == theirs:
        return split, ""
    if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
        order = torch.tensor([ours.index(name) for name in theirs])
        return replace(split, labels=order[split.labels]), "classes matched by name, their order differs"
    i = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return split, f"classes matched by position, their names differ: {ours[i]!r} of the student is {theirs[i]!r} here"


def render(evaluation: Evaluation) -> str:
    """A line per class and one for all."""
    rows = [[name, n, "–" if a is None else f"{a:.4f}"] for name, (n, a) in evaluation.per_class.items()]
    rows.append(["all", evaluation.n, f"{evaluation.accuracy:.4f}"])
    table = tabulate(rows, ["class", "n", "accuracy"], tablefmt="simple", disable_numparse=True, colalign=_ALIGNED)
    return "\n".join([f"{evaluation.n} {evaluation.images}", *filter(None, [evaluation.note]), "", table]) + "\n"


_ALIGNED = ("left", "right", "right")


def main(argv: Sequence[str] | None = None) -> int:
    """Print accuracy, overall and by class; 2 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="kd-eval", description="Measure a student on other data; nothing is trained.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or a file that kd-export wrote")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="+", help="data=NAME and its settings")
    parser.add_argument("--config-dir", metavar="DIR", action="append", default=[], help="groups of your own")
    parser.add_argument("--trust", action="store_true", help="import the student's network from anywhere")
    args = parser.parse_args(argv)
    sys.path.append(str(Path.cwd()))  # data of the user's own may lie beside the command
    try:
        student = load_student(args.run, trust=args.trust)
        cfg = compose_data(args.overrides, student.card, args.config_dir)
        print(render(evaluate_on(student, cfg)), end="")
    except UserError as error:
        print(f"kd-eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
