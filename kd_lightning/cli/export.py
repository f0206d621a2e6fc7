"""``kd-export``: export the student of a run as ONNX, or as one safetensors file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.cli.entry import command
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import task_of
from kd_lightning.errors import UserError
from kd_lightning.results.onnx_export import answer_name, to_onnx
from kd_lightning.results.run_loader import data_of, open_run
from kd_lightning.results.student_files import load_student, save_single


def images_to_check(folder: Path, card: dict[str, Any], *, most: int = 1000, trust: bool = False) -> tuple[Tensor, str]:
    """Images for comparing two forms of a student, and a description of them.

    Args:
        folder: the run folder, whose data are used if they can be loaded.
        card: of the student.
        most: largest number of images.
        trust: whether the run's configuration may load its data with code outside this package.

    Returns:
        uint8 (N, C, H, W), and a description such as ``359 test images of digits``.
    """
    try:
        dataset = data_of(open_run(folder, trust=trust))
        if dataset.test is None:
            raise UserError(f"its data ({dataset.name}) have no test images")
        images = dataset.test.images[:most]
        return images, f"{len(images)} test images of {dataset.name}"
    except UserError as error:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (64, *card["image_shape"]), generator=generator, dtype=torch.uint8)
        return images, f"{len(images)} random images, because: {str(error).splitlines()[0]}"


@command("kd-export")
def main(argv: Sequence[str] | None) -> None:
    """Write the requested files."""
    parser = argparse.ArgumentParser(prog="kd-export", description="Export the student of a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or a file that kd-export wrote")
    parser.add_argument("--onnx", metavar="FILE", type=Path, help="ONNX, checked against the student")
    parser.add_argument("--safetensors", metavar="FILE", type=Path, help="weights and card in one file")
    parser.add_argument("--trust", action="store_true", help="import networks and data sets from anywhere")
    args = parser.parse_args(argv)
    if not (args.onnx or args.safetensors):
        parser.error("say what to write: --onnx FILE, --safetensors FILE or both")
    if args.trust:
        sys.path.append(str(Path.cwd()))
    student = load_student(args.run, trust=args.trust)
    if args.safetensors:
        save_single(student, args.safetensors)
        print(f"wrote {args.safetensors}")
    if args.onnx:
        images, kind = images_to_check(args.run, student.card, trust=args.trust)
        difference = to_onnx(student, args.onnx, images)
        task = task_of(student.card)
        maps = isinstance(task, Segmentation)
        shape = f"{images.shape[1]}, H, W" if maps else ", ".join(str(n) for n in images.shape[1:])
        answers = f"{answer_name(student.card)} (N, {task.outputs}{', H, W' if maps else ''})"
        print(f"wrote {args.onnx}: images (N, {shape}) in [0, 1] -> {answers}")
        print(f"largest difference from the student: {difference:.1e}, on {kind}")


if __name__ == "__main__":
    sys.exit(main())
