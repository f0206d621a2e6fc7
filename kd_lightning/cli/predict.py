"""``kd-predict``: a student's predictions for image files."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kd_lightning.cli.entry import command
from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel, told_labels
from kd_lightning.core.palette import colours
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.strangers import in_a_line
from kd_lightning.core.tasks import Regression, task_of
from kd_lightning.data.datasets.image_files import ENCODINGS, decode, decode_whole
from kd_lightning.errors import UserError
from kd_lightning.results.student_files import Student, load_student
from kd_lightning.store.files import writing

PIXELS = 1 << 26
"""Largest number of pixel values in memory at a time."""


class Prediction(NamedTuple):
    """A file's class and probability, or only its number, or its labels; ``problem`` if it could not be decoded.

    ``each`` has the probabilities of all labels where an image has several.
    """

    file: Path
    label: str
    confidence: float | None
    problem: str = ""
    each: tuple[float, ...] = ()


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among ``paths``, and all images in and under the folders among them, sorted by name.

    Raises:
        UserError: a folder without images, or a path that does not exist.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(
                Path(base) / name
                for base, _, inside in os.walk(path)
                for name in inside
                if os.path.splitext(name)[1].lower() in ENCODINGS and not name.startswith(".")
            )
            if not found:
                raise UserError(f"no image in {path} ({', '.join(ENCODINGS)})")
            files += found
        elif os.path.lexists(path):
            files.append(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return files


def predictions(student: Student, files: Sequence[Path], *, batch_size: int = 256) -> Iterator[Prediction]:
    """One prediction per file, in order; images are resized as the student's training images were.

    Args:
        student: as :func:`~kd_lightning.results.student_files.load_student` returns it.
        files: images of any format and size.
        batch_size: number of files decoded and predicted at a time.
    """
    channels, *size = student.card["image_shape"]
    resize = student.card.get("resize", "crop")
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def pixels(file: Path) -> np.ndarray | str:
        try:
            return decode(file, size=size, channels=channels, resize=resize)
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            return in_a_line(error)

    batch_size = max(1, min(batch_size, PIXELS // (channels * size[0] * size[1])))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            decoded = list(pool.map(pixels, chunk))
            good = [torch.from_numpy(image) for image in decoded if isinstance(image, np.ndarray)]
            said = iter(_said(student.card, predict(student, torch.stack(good), device=device)) if good else ())
            for file, image in zip(chunk, decoded, strict=True):
                if isinstance(image, str):
                    yield Prediction(file, "", None, image)
                else:
                    yield next(said)._replace(file=file)


def _said(card: Mapping[str, Any], answers: Tensor) -> list[Prediction]:
    """Answers (N, K) as text, of no file yet."""
    task = task_of(card)
    if isinstance(task, Regression):
        return [Prediction(Path(), f"{number:.6g}", None) for number in task.numbers(answers).tolist()]
    if isinstance(task, MultiLabel):
        told = zip(told_labels(answers, card["classes"]), answers.float().sigmoid().tolist(), strict=True)
        return [Prediction(Path(), labels, None, each=tuple(each)) for (labels, _), each in told]
    pairs = zip(*(values.tolist() for values in answers.softmax(1).max(1)), strict=True)
    return [Prediction(Path(), card["classes"][label], confidence) for confidence, label in pairs]


def write_masks(student: Student, files: Sequence[Path], folder: Path) -> Iterator[Prediction]:
    """Write the label map of each image as ``folder/NAME.png``, and yield the classes in it with their shares.

    A map is as large as its image. The student sees the whole image, resized until it covers the size that the student
    was trained on; its logits are interpolated back. The PNG has a palette; its pixels are the numbers of the classes,
    as ``data=segmentation_folder`` reads them.

    Args:
        student: as :func:`~kd_lightning.results.student_files.load_student` returns it.
        files: images of any format and size.
        folder: of the maps.

    Raises:
        UserError: two files would have one map.
    """
    names = [file.stem for file in files]
    if twice := [file for file, name in zip(files, names, strict=True) if names.count(name) > 1]:
        raise UserError(f"{twice[0]} and {twice[1]} would both be {twice[0].stem}.png: predict one folder at a time")
    channels, *shape = student.card["image_shape"]
    classes = student.card["classes"]
    palette = colours(len(classes)).flatten().tolist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            pixels, size = decode_whole(file, size=shape, channels=channels)
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            yield Prediction(file, "", None, in_a_line(error))
            continue
        logits = predict(student, torch.from_numpy(pixels)[None], device=device)
        mask = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)[0]
        picture = Image.fromarray(mask.to(torch.uint8).numpy(), mode="P")
        picture.putpalette(palette)
        with writing(folder):
            picture.save(folder / f"{file.stem}.png")
        counts = torch.bincount(mask.flatten(), minlength=len(classes)) / mask.numel()
        most = [(classes[i], float(counts[i])) for i in counts.argsort(descending=True).tolist() if counts[i] > 0]
        yield Prediction(file, ", ".join(f"{name} {share:.1%}" for name, share in most[:4]), None)


@command("kd-predict")
def main(argv: Sequence[str] | None) -> int:
    """Print or write class and probability, number, labels or map of every file; returns 2 if one is not an image."""
    parser = argparse.ArgumentParser(prog="kd-predict", description="Predictions of a run's student for image files.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or a file that kd-export wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=Path,
        help="write file, class, confidence (or file and number; or file, labels and the probability of each label) "
        "instead of printing",
    )
    parser.add_argument("--masks", metavar="DIR", type=Path, help="where a student of segmentation writes its maps")
    parser.add_argument("--trust", action="store_true", help="import the student's network from anywhere")
    args = parser.parse_args(argv)
    if args.trust:
        sys.path.append(str(Path.cwd()))
    student = load_student(args.run, trust=args.trust)
    maps = isinstance(task_of(student.card), Segmentation)
    if maps != (args.masks is not None) or (maps and args.csv):
        raise UserError(
            "this student answers a class for every pixel: say where its maps go with --masks DIR, without --csv"
            if maps
            else "--masks: this student answers once for an image, leave it out"
        )
    files = image_files(args.images)
    if maps:
        return _masks(student, files, args.masks)
    task, classes = task_of(student.card), student.card["classes"]
    unit, several = task.unit, isinstance(task, MultiLabel)
    header = ["file", unit] if unit else ["file", "labels", *classes] if several else ["file", "class", "confidence"]
    width = max(map(len, classes), default=9)
    rows = []
    for prediction in predictions(student, files):
        if prediction.problem:
            print(f"kd-predict: cannot decode {prediction.file}: {prediction.problem}", file=sys.stderr)
            continue
        sure = prediction.confidence
        numbers = prediction.each if several else [] if sure is None else [sure]
        rows.append([prediction.file, prediction.label, *(f"{p:.6f}" for p in numbers)])
        if not args.csv:
            number = _with_probabilities(prediction, classes) if several else f"{prediction.label:>{width}} {unit}"
            print(f"{number if sure is None else f'{sure:.3f}  {prediction.label:<{width}}'}  {prediction.file}")
    if args.csv:
        with writing(args.csv), args.csv.open("w", newline="") as out:
            csv.writer(out).writerows([header, *rows])
        print(f"wrote {args.csv}: {len(rows)} images")
    return 0 if len(rows) == len(files) else 2


def _with_probabilities(prediction: Prediction, classes: Sequence[str]) -> str:
    """The labels of an image with their probabilities, such as ``cat 0.980, dog 0.710``."""
    told = sorted(zip(prediction.each, classes, strict=True), reverse=True)
    return ", ".join(f"{name} {p:.3f}" for p, name in told if p > 0.5) or "none"


def _masks(student: Student, files: Sequence[Path], folder: Path) -> int:
    written = 0
    for prediction in write_masks(student, files, folder):
        if prediction.problem:
            print(f"kd-predict: cannot decode {prediction.file}: {prediction.problem}", file=sys.stderr)
            continue
        written += 1
        print(f"{folder / prediction.file.stem}.png  {prediction.label}")
    print(f"wrote {written} map{'' if written == 1 else 's'} to {folder}")
    return 0 if written == len(files) else 2


if __name__ == "__main__":
    sys.exit(main())
