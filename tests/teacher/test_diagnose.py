"""A teacher that is near chance, or good when read another way, is refused with the suspected cause."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.core.tasks import Classification
from kd_lightning.data.dataset import Split
from kd_lightning.errors import TeacherError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.teacher_check import diagnose, recognise, refuse_constant

CLASSES = 4


class Brightest(nn.Module):
    """Knows exactly which quarter of an image is bright, if pixels come as it learned them: x in [low, high]."""

    def __init__(self, low: float, high: float, order: list[int] | None = None) -> None:
        super().__init__()
        self.low, self.high, self.order = low, high, order or list(range(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        quarters = x.mean(1).unflatten(1, (CLASSES, -1)).mean((2, 3))
        right = (x.amin((1, 2, 3)) > self.low) & (x.amax((1, 2, 3)) < self.high)
        return torch.where(right[:, None], quarters, torch.zeros_like(quarters))[:, self.order]


def images(channels: int = 1, n: int = 400) -> Split:
    torch.manual_seed(0)
    labels = torch.arange(n) % CLASSES
    x = torch.randint(10, 60, (n, channels, 8, 8))
    for i, label in enumerate(labels.tolist()):
        x[i, :, 2 * label : 2 * label + 2] += 150
    return Split(x.to(torch.uint8), labels)


def teacher(net: nn.Module, channels: int = 1, **settings: object) -> Normalized:
    return Normalized(net, **({"mean": [0.5] * channels, "std": [0.5] * channels} | settings))  # type: ignore[arg-type]


def said(net: Normalized, split: Split) -> str:
    with pytest.raises(TeacherError) as refusal:
        diagnose(net, split)
    assert "teacher.check=false" in str(refusal.value)
    return str(refusal.value)


def test_a_good_teacher_passes() -> None:
    assert diagnose(teacher(Brightest(-1.1, 1.1)), images()) == 1.0


def test_near_chance() -> None:
    torch.manual_seed(0)
    message = said(
        teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))),
        Split(images().images, torch.randperm(400) % CLASSES),
    )
    assert "always naming the commonest class reaches 0.250" in message
    assert "(1x8x8)" in message


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [
        (0.0, 1.0, "images left in [0, 1]: teacher.mean=[0.0] teacher.std=[1.0]"),
        (1.0, 256.0, "images in [0, 255]: teacher.mean=[0.0] teacher.std=[0.003922]"),
    ],
)
def test_wrong_normalisation(low: float, high: float, hint: str) -> None:
    assert hint in said(teacher(Brightest(low, high)), images())


def test_the_hint_works_as_typed() -> None:
    message = said(teacher(Brightest(0.0, 1.0), 3), images(3))
    mean, std = (eval(re.search(rf"teacher\.{k}=(\S+)", message)[1].rstrip(".")) for k in ("mean", "std"))
    assert diagnose(teacher(Brightest(0.0, 1.0), 3, mean=mean, std=std), images(3)) == 1.0


def test_inverted_images() -> None:
    split = images()
    inverted = Split(255 - split.images, split.labels)
    assert "inverted images" in said(teacher(Brightest(-1.1, 1.1)), inverted)


def test_permuted_classes_also_where_an_order_was_given() -> None:
    for given in (None, [1, 0, 3, 2]):
        net = Brightest(-1.1, 1.1, order=[2, 0, 3, 1])
        message = said(teacher(net, class_order=given), images())
        order = eval(re.search(r"teacher\.class_order=(\[[\d,]+\])", message)[1])
        assert diagnose(teacher(net, class_order=order), images()) == 1.0


def test_bgr() -> None:
    class Red(Brightest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :1])

    split = images(3)
    split.images[:, :2] = 30
    assert "BGR" in said(teacher(Red(-1.1, 1.1), 3), split)


def test_a_sound_teacher_of_few_images_is_not_accused() -> None:
    said = []
    for draw in range(60):
        rng = torch.Generator().manual_seed(draw)
        labels = torch.randint(3, (30,), generator=rng)
        answers = torch.where(torch.rand(30, generator=rng) < 0.75, labels, torch.randint(3, (30,), generator=rng))
        x = answers.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8).contiguous()
        net = Normalized(OneHot(), mean=[0.0], std=[1 / 255])
        try:
            diagnose(net, Split(x, labels))
        except TeacherError as error:
            said.append(str(error))
    assert not said


class OneHot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0, 0, 0].round().long().clamp(0, 2), 3).float()


class Table(nn.Module):
    """Right about the first 14 of 20 numbered images, about 16 if they are inverted."""

    def forward(self, x: Tensor) -> Tensor:
        number = x[:, 0, 0, 0].mul(255).round().long()
        right = torch.where(number < 100, number < 14, 255 - number < 16)
        label = torch.where(number < 100, number, 255 - number) % 4
        return nn.functional.one_hot(torch.where(right, label, (label + 1) % 4), 4).float()


def test_two_images_more_are_chance() -> None:
    x = torch.arange(20).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8).contiguous()
    net = Normalized(Table(), mean=[0.0], std=[1.0])
    assert diagnose(net, Split(x, torch.arange(20) % 4)) == pytest.approx(0.7)


def test_the_normalisation_that_is_there_is_not_proposed() -> None:
    labels = torch.arange(400) % 3
    x = labels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8).contiguous()
    with pytest.raises(TeacherError, match=r"images in \[0, 255\]: teacher\.mean"):
        diagnose(Normalized(OneHot(), mean=[0.0], std=[1.0]), Split(x, labels))
    assert diagnose(Normalized(OneHot(), mean=[0.0], std=[1 / 255]), Split(x, labels)) == 1.0


def test_no_other_reading_is_looked_for_where_it_was_trained_here() -> None:
    split, net = images(), teacher(Brightest(-1.1, 1.1, order=[2, 0, 3, 1]))
    with pytest.raises(TeacherError, match="class_order"):
        diagnose(net, split)
    half = Split(
        split.images, torch.where(torch.arange(400) < 200, split.labels, torch.tensor([1, 3, 0, 2])[split.labels])
    )
    assert diagnose(net, half, trained=True) >= 0.5


def knows(outputs: str) -> nn.Module:
    """Answers in these terms, of logits drawn from the pixels."""
    torch.manual_seed(0)
    head = nn.Linear(64, 1 if outputs == "one_logit" else 3)
    head.weight.data.mul_(10)
    end = {"probabilities": nn.Softmax(1), "sigmoid": nn.Sigmoid()}.get(outputs, nn.Identity())
    return nn.Sequential(nn.Flatten(), head, end)


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "sigmoid", "one_logit"])
def test_what_a_teacher_answers_with_is_recognised_and_the_setting_mends_it(outputs: str) -> None:
    x = torch.randint(256, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    task = Classification(2 if outputs == "one_logit" else 3)
    read = teacher(knows(outputs), outputs=outputs)
    recognise(read, x, task)
    assert read(x / 255).shape == (100, task.num_classes)
    assert (read(x / 255) < 0).any()
    for other in {"logits", "probabilities"} - {outputs}:
        if other == "logits" or outputs == "logits":
            with pytest.raises(TeacherError, match=f"set teacher.outputs={outputs}"):
                recognise(teacher(knows(outputs), outputs=other), x, task)


def test_probabilities_read_as_such_give_the_logits_again() -> None:
    x = torch.rand(5, 1, 8, 8)
    logits, soft = (teacher(knows(k), outputs=k) for k in ("logits", "probabilities"))
    assert torch.allclose(soft(x).softmax(1), logits(x).softmax(1), atol=1e-5)


def test_the_same_answer_to_every_image_is_named() -> None:
    x = images().images
    with pytest.raises(TeacherError, match="answers every image alike"):
        refuse_constant(teacher(Brightest(0.9, 1.0)), x)
    refuse_constant(teacher(Brightest(-1.1, 1.1)), x)
