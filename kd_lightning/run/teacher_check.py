"""Checks a teacher's accuracy on labelled images before distillation, and looks for the cause if it is low."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Classification, Regression, Task, kept
from kd_lightning.data.dataset import Split
from kd_lightning.errors import TeacherError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.outputs import Kind, kind_of
from kd_lightning.run.teacher_measure import GAIN, Measure, of_classes, of_maps, of_numbers, of_several, right

SURE = 3.0
"""... and by this many standard errors of the difference on the same images."""


def recognise(teacher: Normalized, images: Tensor, task: Task, *, device: str = "cpu") -> None:
    """Refuse a teacher whose first answers are not what its settings say.

    Args:
        teacher: the network as the settings read it.
        images: uint8 (N, C, H, W), some tens.
        task: what the answers mean.
        device: the device it runs on.

    Raises:
        TeacherError: it answers with NaN, or with probabilities or a single logit where logits are expected; the
            message says what to type.
    """
    bare = Normalized(teacher.net, mean=_listed(teacher.mean), std=_listed(teacher.std), size=teacher.size)
    output = predict(bare, images, device=device)
    name = type(teacher.net).__name__
    if not output.isfinite().all():
        raise TeacherError(f"the teacher {name} answers with NaN or infinity: are these its weights, its images?")
    if not isinstance(task, Classification | MultiLabel):
        return
    kind = kind_of(output, task.outputs) if isinstance(task, Classification) else _kind_of_several(output)
    if kind != teacher.outputs and (kind == "logits" or teacher.outputs == "logits"):
        one = "one for two classes, " if output.dim() == 1 or output.shape[1] == 1 else ""
        raise TeacherError(
            f"the teacher {name} answers with {SAID[kind]} ({one}in [{float(output.min()):.3g}, "
            f"{float(output.max()):.3g}]), but teacher.outputs={teacher.outputs}: set teacher.outputs={kind}, or "
            "accept it as it is with teacher.check=false"
        )


def refuse_constant(teacher: Normalized, images: Tensor, *, device: str = "cpu") -> None:
    """Refuse a teacher that answers different images uint8 (N, C, H, W) alike.

    Raises:
        TeacherError: the answers do not differ.
    """
    output = predict(teacher, images, device=device)
    if len(images) > 1 and bool((images != images[0]).any()) and bool(output.std(0).max() <= 1e-6 * output.abs().max()):
        raise TeacherError(
            f"the teacher {type(teacher.net).__name__} answers every image alike: give its weights with "
            "teacher.weights=FILE and its normalisation with teacher.mean and teacher.std, or accept it as it is with "
            "teacher.check=false"
        )


def _kind_of_several(output: Tensor) -> Kind:
    """What answers (N, K) for several labels are: logits of all of them are not in [0, 1]."""
    return "sigmoid" if bool((output >= 0).all() and (output <= 1).all()) else "logits"


SAID = {
    "logits": "logits",
    "probabilities": "probabilities, as after a softmax",
    "sigmoid": "a probability for each class by itself, as after a sigmoid",
    "one_logit": "one logit",
}


def _listed(values: Tensor) -> list[float]:
    return values.flatten().tolist()


def diagnose(
    teacher: Normalized,
    split: Split,
    *,
    task: Task | None = None,
    limit: int = 2000,
    device: str = "cpu",
    trained: bool = False,
) -> float:
    """Measure the teacher and refuse one that is near chance or misconfigured.

    Args:
        teacher: the network with the normalisation the run would use.
        split: labelled images.
        task: what the labels are, None for classes.
        limit: at most this many of them are used; a quarter of that for other normalisations and orders.
        device: the device it runs on.
        trained: whether it was trained on these data as they are read: no other reading is looked for then.

    Returns:
        Accuracy, mean IoU or the precision of the labels' ranking, in [0, 1]; for regression 1 - e / e_median, with the
        mean absolute errors of the teacher and of the labels' median.

    Raises:
        TeacherError: it is near chance, or better under another normalisation, channel order or class order, by
            ``GAIN`` and beyond sampling error; the message says which, and what to type.
    """
    if (keep := kept(task)) is not None:
        limit //= 10  # a map has many labels
    pick = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit]
    images, labels = split.images[pick], split.labels[pick]
    output = predict(teacher, images, keep=keep, device=device)
    if isinstance(task, Regression):
        measure = of_numbers(task, labels)
    elif isinstance(task, Segmentation):
        measure = of_maps(task, labels)
    elif isinstance(task, MultiLabel):
        measure = of_several(labels)
    else:
        measure = of_classes(labels, output.shape[1])
    score, said = measure.score(output, labels), measure.said
    few = slice(None, max(500, limit // 4) if keep is None else limit // 4)
    now = measure.each(output[few], labels[few])
    cause, better = "", 0.0
    if not trained:
        cause, better = _best_reading(teacher, images[few], labels[few], output[few], now, measure, keep, device)
    if cause and better > measure.floor:
        raise TeacherError(
            f"the teacher {said(score)} on labelled images, but {said(better)} with {cause}. Fix that, or "
            "accept the teacher as it is with teacher.check=false"
        )
    if score < measure.chance + measure.margin:
        raise TeacherError(
            f"the teacher {said(score)} on labelled images, where always naming {measure.guess} "
            f"{said(measure.chance)}: nothing can be learned from it. Are these its weights, its {measure.answers}, "
            f"its kind of images ({images.shape[1]}x{images.shape[2]}x{images.shape[3]})? Train longer with "
            "data.recipe.epochs=N, or accept it with teacher.check=false"
        )
    return score


def _best_reading(
    teacher: Normalized,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    now: Tensor,
    measure: Measure,
    keep: Callable[[Tensor], Tensor] | None,
    device: str,
) -> tuple[str, float]:
    """The reading of images or answers that is surely better than the present one, and its score; none is ``("", 0)``.

    Args:
        teacher: the network as the settings read it.
        images: uint8 (N, C, H, W).
        labels: their labels, (N,).
        logits: its present answers.
        now: the score of each, (N,).
        measure: scores answers.
        keep: what is kept of the answers.
        device: the device it runs on.
    """
    found: dict[str, float] = {}

    def consider(said: str, then: Tensor, rows: slice = slice(None)) -> None:
        gains = then - now[rows]
        error = float(gains.std()) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
        if float(gains.mean()) > max(GAIN, SURE * error) and float(gains.sum()) > SURE:
            found[said] = float(then.mean())

    if measure.each is right:
        # any class may take any output, so the best order fits by chance a little: half for choosing, half for judging
        half = len(labels) // 2
        tried, order = _assignment(logits[:half], labels[:half]), _assignment(logits, labels)
        if order != list(range(len(order))):
            own = [(teacher.class_order or range(len(order)))[i] for i in order]
            said = f"another class order: teacher.class_order={_typed(own)}"
            consider(said, right(logits[half:][:, tried], labels[half:]), slice(half, None))
    if float(now.mean()) + GAIN >= 1:  # nothing can be better by more than GAIN
        return max(found.items(), key=lambda item: item[1], default=("", 0.0))
    channels = images.shape[1]
    present = _listed(teacher.mean), _listed(teacher.std)
    for name, (mean, std) in _normalisations(channels).items():
        if torch.allclose(torch.tensor(present), torch.tensor((mean, std)), atol=1e-3):
            continue
        other = _read_otherwise(teacher, mean, std)
        then = measure.each(predict(other, images, keep=keep, device=device), labels)
        consider(f"{name}: teacher.mean={_typed(mean)} teacher.std={_typed(std)}", then)
    if channels == 3:
        then = measure.each(predict(teacher, images.flip(1), keep=keep, device=device), labels)
        consider("the channels in BGR order", then)
    then = measure.each(predict(teacher, 255 - images, keep=keep, device=device), labels)
    consider("inverted images (white on black instead of black on white, or the reverse)", then)
    return max(found.items(), key=lambda item: item[1], default=("", 0.0))


def _read_otherwise(teacher: Normalized, mean: list[float], std: list[float]) -> Normalized:
    order, outputs, size = teacher.class_order, teacher.outputs, teacher.size
    return Normalized(teacher.net, mean=mean, std=std, class_order=order, outputs=outputs, size=size)


def _normalisations(channels: int) -> dict[str, tuple[list[float], list[float]]]:
    table = {
        "images left in [0, 1]": ([0.0] * channels, [1.0] * channels),
        "images in [-1, 1]": ([0.5] * channels, [0.5] * channels),
        "images in [0, 255]": ([0.0] * channels, [round(1 / 255, 6)] * channels),
    }
    if channels == 3:
        table["ImageNet's normalisation"] = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        table["CIFAR-10's normalisation"] = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    if channels == 1:
        table["MNIST's normalisation"] = ([0.1307], [0.3081])
    return table


def _assignment(logits: Tensor, labels: Tensor) -> list[int]:
    classes = logits.shape[1]
    counts = torch.zeros(classes, classes, dtype=torch.long)
    counts.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    from scipy.optimize import linear_sum_assignment  # slow to import, and few teachers need it

    return linear_sum_assignment(counts.numpy(), maximize=True)[1].tolist()


def _typed(values: list[Any]) -> str:
    return str(values).replace(" ", "")
