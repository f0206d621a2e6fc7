"""Every network makes one pass before anything is trained; usual kinds of output become one tensor."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import composition
from torch import Tensor, nn

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Classification
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.first_pass import first_pass, try_network
from kd_lightning.run.teacher_net import load_net

IMAGE, TASK = (1, 8, 8), Classification(10)
STATISTICS = ("method.generator.mean=[0.5,0.5,0.5]", "method.generator.std=[0.5,0.5,0.5]")
Outputs = namedtuple("Outputs", ["logits", "aux"])


class Answers(nn.Module):
    """A linear network whose logits are handed through a function of them and the mode."""

    def __init__(self, form: Callable[[Tensor, bool], Any], outputs: int = 10) -> None:
        super().__init__()
        self.fc, self.form = nn.Linear(64, outputs), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.fc(x.flatten(1)), self.training)


USUAL: dict[str, Callable[[Tensor, bool], Any]] = {
    "tensor": lambda y, training: y,
    "tuple": lambda y, training: (y, y * 0),
    "auxiliary heads in training": lambda y, training: Outputs(y, y * 0) if training else y,
    "dict": lambda y, training: {"features": y[:, :3], "logits": y},
    "segmentation's dict": lambda y, training: {"out": y, "aux": y * 0},
    "one entry": lambda y, training: {"anything": y},
    "model output": lambda y, training: SimpleNamespace(logits=y, loss=None),
    "a map of one pixel": lambda y, training: y[:, :, None, None],
}


@pytest.mark.parametrize("form", USUAL)
def test_usual_outputs_become_one_tensor(form: str) -> None:
    net = Answers(USUAL[form])
    try_network("student", net, IMAGE, TASK)
    x = torch.rand(3, *IMAGE)
    for training in (True, False):
        read = Normalized(net, mean=[0.0], std=[1.0]).train(training)
        assert torch.equal(read(x), net.fc(x.flatten(1)))


UNUSUAL: dict[str, tuple[nn.Module, str]] = {
    "map": (nn.Conv2d(1, 10, 3), r"Conv2d answers 2 images with \(2, 10, 6, 6\), .*a map of features"),
    "twelve": (Answers(lambda y, t: y, 12), r"\(2, 12\), in training, expected \(2, 10\).*12 outputs, the data 10"),
    "words": (Answers(lambda y, t: "cat"), "answers with str, expected a tensor of logits"),
    "names": (Answers(lambda y, t: {"a": y, "b": y}), "a mapping of a, b, none called logits"),
    "other channels": (nn.Conv2d(3, 10, 8), r"Conv2d fails on images \(2, 1, 8, 8\), in training: .*data\.size"),
    "softmax": (Answers(lambda y, t: y.softmax(1)), "answers with probabilities, and losses take logits"),
    "evaluation only": (Answers(lambda y, t: y if t else y[:, :5]), "in evaluation"),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_others_are_refused_in_one_line(case: str) -> None:
    net, said = UNUSUAL[case]
    with pytest.raises(UserError, match=said) as refusal:
        try_network("student", net, IMAGE, TASK)
    assert "\n" not in str(refusal.value)


def test_one_output_for_two_classes_is_named_with_its_setting() -> None:
    with pytest.raises(UserError, match=r"teacher\.outputs=one_logit"):
        try_network("teacher", Answers(lambda y, t: y, 1), IMAGE, Classification(2), trained=True)


def bench(image: tuple[int, int, int] = IMAGE) -> Any:
    return SimpleNamespace(task=TASK, image_shape=image)


def drawn(**how: Any) -> nn.Module:
    """A network that brings its weights, whatever the random state is."""
    with torch.random.fork_rng():
        torch.manual_seed(17)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def fresh(**how: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def lazy(**how: Any) -> nn.Module:
    """A network whose first layer takes what the first images give it."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, 10))


def made(target: str, *overrides: str) -> Any:
    return composition("method=kd", "controls=none", f"teacher.net._target_={__name__}.{target}", *overrides)


@pytest.mark.slow
def test_a_network_that_brings_weights_is_not_trained_over_unasked() -> None:
    first_pass(made("fresh"), bench())
    with pytest.raises(UserError, match=r"drawn brings weights of its own: teacher\.weights=own .*=tune"):
        first_pass(made("drawn"), bench())
    own = made("drawn", "teacher.weights=own")
    first_pass(own, bench())
    first_pass(made("drawn", "teacher.weights=tune"), bench())
    assert own.teacher.training is None
    assert made("drawn", "teacher.weights=tune").teacher.training is not None
    net, key = load_net(own.teacher)
    assert torch.equal(net.net[1].weight, drawn()[1].weight)
    assert load_net(own.teacher)[1] == key


def test_a_layer_that_images_shape_brings_no_weights() -> None:
    first_pass(made("lazy"), bench())


def test_sizes_that_a_network_or_a_generator_cannot_take() -> None:
    lenet = composition("data=mnist", "data.size=28", "teacher=lenet5", "method=kd", "controls=none")
    with pytest.raises(UserError, match=r"teacher: LeNet5, .*takes images of 32x32, got 28x28"):
        first_pass(lenet, bench((1, 28, 28)))
    with pytest.raises(UserError, match=r"30"):
        first_pass(composition("data.size=30", "method=dfad", "controls=none"), bench((1, 30, 30)))


def test_scenes_are_generated_in_another_size_and_in_no_other_colours() -> None:
    given = ("problem=dense_digits", "method=dfad")
    scenes = SimpleNamespace(image_shape=(1, 32, 48), task=Segmentation(11))
    first_pass(composition(*given), scenes)
    with pytest.raises(UserError, match=r"makes images of \(3, 16, 32\), the data's are \(1, 32, 48\)"):
        first_pass(composition(*given, "method.generator.channels=3", *STATISTICS), scenes)


def test_a_teacher_of_larger_images_answers_small_ones() -> None:
    net = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)), mean=[0.0], std=[1.0], size=32)
    assert net(torch.rand(2, *IMAGE)).shape == (2, 10)
