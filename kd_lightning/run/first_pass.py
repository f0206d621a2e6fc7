"""One pass of every network, in both modes, on an image of the data's size, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kd_lightning.config.composition import OWN, TUNE, Composition, TeacherSettings
from kd_lightning.config.node import Node
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Classification, Regression, Task
from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.outputs import one_tensor

OURS = ("kd_lightning.networks.classifiers.", "kd_lightning.networks.segmenters.")
"""Networks that bring no weights."""


def first_pass(composition: Composition, dataset: Dataset) -> None:
    """Refuse networks that cannot take the data's images or give other answers than the task's.

    Raises:
        UserError: names the network, what it did and what was expected.
    """
    task, image = dataset.task, tuple(dataset.image_shape)
    teacher = composition.teacher
    with torch.random.fork_rng(devices=[]):
        try_network("student", _built("student", composition.student), image, task)
        for name, control in composition.controls.items():
            if control.student != composition.student:
                what = f"controls.{name}.student"
                try_network(what, _built(what, control.student), image, task)
        if teacher is not None and teacher.net is not None:
            net = _built("teacher.net", teacher.net)
            if teacher.weights in (None, TUNE):
                if teacher.weights is None:
                    _refuse_own_weights(teacher, net)
                try_network("teacher", net, image, task)
            else:
                order = teacher.class_order
                read = Normalized(net, mean=teacher.mean, std=teacher.std, outputs=teacher.outputs, size=teacher.size)
                wanted = None if order or teacher.outputs != "logits" else task
                try_network("teacher", read, image, wanted, trained=True)
        for key, node in _generators(composition.method.settings):
            _try_generator(f"method.{key}", node, image, task)


def try_network(what: str, net: nn.Module, image: tuple[int, ...], task: Task | None, *, trained: bool = False) -> None:
    """Refuse a network that fails on images (N, C, H, W), or answers with other outputs than the task's.

    Args:
        what: name of the network in messages.
        net: any module; its batch norms' statistics change.
        image: (C, H, W).
        task: classification and regression fix the shape of the answers; None, or another task, leaves it.
        trained: whether it brings its weights: it is not run in training mode then.

    Raises:
        UserError: it fails, or its answer is none.
    """
    x = torch.rand(2, *image, generator=torch.Generator().manual_seed(0))
    name = type(net.net if isinstance(net, Normalized) else net).__name__
    for training in (False,) if trained else (True, False):
        mode = "in training" if training else "in evaluation"
        net.train(training)
        try:
            with torch.no_grad():
                answer = one_tensor(net(x))
        except UserError as error:
            raise UserError(f"{what}: {name}, {mode}: {error}") from error
        except Exception as error:  # a network may raise anything
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{what}: {name} fails on images {tuple(x.shape)}, {mode}: {said}. Choose a network for images of that "
                "size, or another data.size"
            ) from error
        _refuse_shape(what, name, answer, task, mode)
        if not trained and isinstance(task, Classification) and _sums_to_one(answer):
            raise UserError(
                f"{what}: {name} answers with probabilities, and losses take logits: leave the softmax at its end out"
            )
        if not trained and isinstance(task, MultiLabel) and isinstance(list(net.modules())[-1], nn.Sigmoid):
            raise UserError(
                f"{what}: {name} answers with probabilities, and losses take logits: leave the sigmoid at its end out"
            )
    net.eval()


def _sums_to_one(answer: Tensor) -> bool:
    total = answer.float().sum(1)
    return answer.dim() == 2 and bool((answer >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-4))


def _refuse_shape(what: str, name: str, answer: Tensor, task: Task | None, mode: str) -> None:
    if isinstance(task, Segmentation):
        if answer.dim() != 4 or answer.shape[:2] != (2, task.outputs):
            raise UserError(
                f"{what}: {name} answers 2 images with {tuple(answer.shape)}, {mode}, expected {(2, task.outputs)} and "
                "the images' height and width: a class for every pixel"
            )
        return
    if not isinstance(task, Classification | Regression | MultiLabel) or tuple(answer.shape) == (2, task.outputs):
        return
    shape = tuple(answer.shape)
    said = f"{what}: {name} answers 2 images with {shape}, {mode}, expected {(2, task.outputs)}"
    two = isinstance(task, Classification) and task.outputs == 2 and shape in ((2,), (2, 1))
    if two and what == "teacher":
        said += ": one output for two classes is read by teacher.outputs=one_logit, or probabilities after a sigmoid"
    elif answer.dim() == 4:
        said += ": a map of features or pixels; give it a pooling and a linear layer"
    elif answer.dim() == 2:
        said += f": its last layer has {shape[1]} outputs, the data {task.outputs}"
        if what == "teacher" and shape[1] > task.outputs:
            said += "; teacher.class_order=[...] picks those that are meant"
    raise UserError(said)


def _built(what: str, node: Node) -> nn.Module:
    try:
        net: Any = node.build()
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{what}: {node.target} cannot be built: {type(error).__name__}: {said}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{what}: {node.target} makes a {type(net).__name__}, expected a torch.nn.Module")
    return net


def _refuse_own_weights(teacher: TeacherSettings, net: nn.Module) -> None:
    """Refuse to train a network over weights that it brings: built twice, most of a fresh one differs."""
    assert teacher.net is not None
    if teacher.net.target.startswith(OURS):
        return
    torch.manual_seed(torch.initial_seed() + 1)
    again = dict(_built("teacher.net", teacher.net).named_parameters())
    there = {name: p for name, p in net.named_parameters() if not is_lazy(p)}  # whose size images decide brings nothing
    drawn = {name: p for name, p in there.items() if p.dim() > 1 and p.numel() > 1 and bool(p.std() > 0)}
    own = [name for name, p in drawn.items() if name in again and torch.equal(p, again[name])]
    if 2 * sum(drawn[name].numel() for name in own) < sum(p.numel() for p in drawn.values()) or not own:
        return  # a table of positions or fixed filters are no weights that were learned
    fresh = [name for name in drawn if name not in own]
    but = f", all but {', '.join(fresh[:3])}" if fresh else ""
    raise UserError(
        f"teacher: {teacher.net.target} brings weights of its own{but}: teacher.weights={OWN} teaches by them as they "
        f"are, teacher.weights={TUNE} trains them on"
    )


def _generators(settings: Mapping[str, Any]) -> Iterator[tuple[str, Node]]:
    for key, value in settings.items():
        if str(key) == "generator" and (node := Node.of(value)) is not None and not node.get("_partial_"):
            yield str(key), node


def _try_generator(what: str, node: Node, image: tuple[int, ...], task: Task) -> None:
    """Refuse a generator of latents that makes images of other channels than the data's, or, unless maps are learned
    of it, of another size.
    """
    if "latent" not in node:
        _built(what, node)
        return
    net = _built(what, node).eval()
    try:
        with torch.no_grad():
            made = one_tensor(net(torch.randn(2, int(node["latent"]))))
    except Exception:  # of latents and labels, or anything else: the method knows how to call it
        return
    free = 1 if isinstance(task, Segmentation) and made.dim() == 4 else len(image)  # scenes are made of any size
    if tuple(made.shape[1:])[:free] != image[:free]:
        raise UserError(
            f"{what}: {type(net).__name__} makes images of {tuple(made.shape[1:])}, the data's are {image}: choose "
            "another data.size, such as a multiple of 4, or another generator"
        )
