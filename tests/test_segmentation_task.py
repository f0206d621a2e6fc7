"""The task of segmentation: its loss and metrics against slow references, and what a test keeps in memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_lightning.core.inference import at_once, predict
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.core.sides import sides
from kd_lightning.core.tasks import evaluate, kept, task_of
from kd_lightning.data.dataset import Dataset, Split, hold_out
from kd_lightning.data.load import dataset_digest
from kd_lightning.errors import ConfigError, DataError

TASK = Segmentation(3)


def maps(n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and of a teacher (n, 3, 5, 4), labels with void ones."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(n, 3, 5, 4, generator=generator) for _ in range(2))
    labels = torch.randint(4, (n, 5, 4), generator=generator)
    return student, teacher, labels.masked_fill(labels == 3, 255)


def slow_ious(said: Tensor, true: Tensor) -> list[float]:
    pairs = [(s, t) for s, t in zip(said.flatten().tolist(), true.flatten().tolist(), strict=True) if t != 255]
    found = []
    for c in range(3):
        either = sum(s == c or t == c for s, t in pairs)
        found.append(sum(s == c and t == c for s, t in pairs) / either if either else math.nan)
    return found


def test_the_loss_is_the_mean_over_pixels_that_are_not_void() -> None:
    student, _, labels = maps()
    terms = [
        -student[n].log_softmax(0)[labels[n, i, j], i, j]
        for n in range(7) for i in range(5) for j in range(4) if labels[n, i, j] != 255
    ]  # fmt: skip
    assert TASK.loss(student, labels).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    nothing = TASK.loss(student.requires_grad_(), torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert not student.grad.any()  # type: ignore[union-attr]


def test_a_network_of_one_answer_an_image_is_told_what_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"answers \(7, 3, 5, 4\) to these images, got \(7, 3\)"):
        TASK.loss(torch.zeros(7, 3), maps()[2])


@pytest.mark.parametrize("parts", [1, 3])
def test_metrics_accumulate_to_those_of_all_pixels(parts: int) -> None:
    student, teacher, labels = maps()
    miou, accuracy, agreement = *TASK.metrics().values(), TASK.agreement()
    for s, t, y in zip(student.chunk(parts), teacher.chunk(parts), labels.chunk(parts), strict=True):
        miou.update(s, y)
        accuracy.update(s.argmax(1), y)  # masks do as well as logits
        agreement.update(s, t.argmax(1))
    said, valid = student.argmax(1), labels != 255
    assert miou.compute().item() == pytest.approx(sum(slow_ious(said, labels)) / 3, abs=1e-6)
    assert accuracy.compute().item() == pytest.approx((said == labels)[valid].float().mean().item(), abs=1e-6)
    assert agreement.compute().item() == pytest.approx((said == teacher.argmax(1)).float().mean().item(), abs=1e-6)


def test_a_class_that_is_nowhere_has_no_iou_and_does_not_count() -> None:
    said, true = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]])
    ious = class_ious(pixel_confusion(true, said, 3))
    assert ious[:2].tolist() == [0.5, 0.0]
    assert ious[2].isnan()
    assert evaluate(TASK, said, true, None)["miou"] == 0.25


def test_what_is_kept_of_outputs_is_measured_like_the_outputs() -> None:
    student, teacher, labels = maps()
    keep = kept(TASK)
    assert keep is not None
    assert keep(student).dtype == torch.uint8
    assert evaluate(TASK, keep(student), labels.to(torch.uint8), keep(teacher)) == evaluate(
        TASK, student, labels, teacher
    )


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is computed, except for images and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype not in (torch.uint8, torch.bool):
            self.bytes = max(self.bytes, made.numel() * made.element_size())
        return made


def test_the_memory_of_a_test_does_not_grow_with_the_images() -> None:
    net, few = nn.Conv2d(1, 3, 1), at_once(torch.empty(0, 1, 128, 256), maps=True)

    def most(n: int) -> int:
        images, labels = torch.zeros(n, 1, 128, 256, dtype=torch.uint8), torch.zeros(n, 128, 256, dtype=torch.uint8)
        with Largest() as seen:
            masks = predict(net, images, keep=TASK.kept)
            evaluate(TASK, masks, labels, masks)
        return seen.bytes

    assert most(4 * few) == most(few)


OVER_SCENES = """
import sys, torch
from kd_lightning.core.inference import predict
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import evaluate, kept
from kd_lightning.networks.segmenters.small import SmallSegmenter

def peak():  # of this process: getrusage's begins with that of the one it was forked from
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
task, net = Segmentation(11), SmallSegmenter(num_classes=11)
images, labels = torch.ones(400, 3, 90, 120, dtype=torch.uint8), torch.ones(400, 90, 120, dtype=torch.uint8)
keep = kept(task) if sys.argv[1] == "masks" else None
peaks = [peak()]
for n in (100, 400):
    outputs = predict(net, images[:n], keep=keep)
    evaluate(task, outputs, labels[:n], outputs)
    peaks.append(peak())
print((peaks[2] - peaks[0]) / (peaks[1] - peaks[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_a_process_that_tests_four_times_the_scenes_needs_no_more_memory() -> None:
    def growth(what: str) -> float:
        """The peak over 400 scenes of 90x120, divided by that over 100, both above what the process had before."""
        said = subprocess.run(
            [sys.executable, "-c", OVER_SCENES, what], capture_output=True, text=True, check=True, env=environment
        ).stdout
        return float(said)

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc returns what is freed to the system
    assert growth("masks") < 1.3
    assert growth("logits") > 2


def test_void_is_no_class() -> None:
    with pytest.raises(ConfigError, match="void=2: expected a value from 3 to 255"):
        Segmentation(3, void=2)
    with pytest.raises(ConfigError, match="num_classes=300: expected 2 to 255"):
        Segmentation(300)


def test_a_card_describes_the_task() -> None:
    found = task_of({"task": Segmentation(3, void=7).described()})
    assert isinstance(found, Segmentation)
    assert (found.num_classes, found.void) == (3, 7)


def test_label_maps_are_checked_against_images_and_classes() -> None:
    images, labels = torch.zeros(2, 1, 5, 4, dtype=torch.uint8), torch.zeros(2, 5, 4, dtype=torch.uint8)

    def dataset(labels: Tensor, task: Segmentation = TASK) -> Dataset:
        return Dataset("toy", ["a", "b", "c"], None, None, Split(images, labels), "none", "none", task=task)

    labels[1, 2, 3] = 255
    with pytest.raises(DataError, match=r"toy/test: image 1 has the label 255, expected 0 to 2, or 9 for void"):
        dataset(labels, Segmentation(3, void=9))
    with pytest.raises(DataError, match=r"labels are torch.uint8 \(2, 4, 5\), expected integers \(2, 5, 4\)"):
        dataset(labels.transpose(1, 2))


def test_void_is_part_of_what_data_are() -> None:
    split = Split(torch.zeros(2, 1, 5, 4, dtype=torch.uint8), torch.zeros(2, 5, 4, dtype=torch.uint8))
    one, other = (
        Dataset("toy", ["a", "b"], None, None, split, "none", "none", task=Segmentation(2, void=void))
        for void in (255, 9)
    )
    assert dataset_digest(one) != dataset_digest(other)


def test_images_with_maps_are_held_out_like_those_of_one_class() -> None:
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    train, val = hold_out(Split(images, torch.zeros(20, 1, 1, dtype=torch.uint8)), 5)
    assert (len(train), len(val)) == (15, 5)
    assert sorted(torch.cat([train.images, val.images]).flatten().tolist()) == list(range(20))


def test_a_size_is_one_number_or_two() -> None:
    assert sides(8) == (8, 8)
    assert sides([90, 120]) == (90, 120)
    with pytest.raises(DataError, match=r"data\.size=\[1, 2, 3\]: expected one number, or height and width"):
        sides([1, 2, 3])
