"""Compiled networks give the same numbers, show what hooks want to see, and are asked for where they can be made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, composed
from torch import nn
from torch._dynamo.utils import counters

from kd_lightning.config.check import faults
from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.taps import Taps
from kd_lightning.core.tasks import Classification
from kd_lightning.engine.compiled import compile_adapters
from kd_lightning.losses.batch_norm import BatchNormTap
from kd_lightning.methods.real_data.distill import Distill


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_numbers_by_a_fit_of_its_own(tiny: Callable[..., Outcome], store: Path) -> None:
    as_written = tiny("method=kd")
    before, fits = counters["stats"]["unique_graphs"], len(list(store.glob("fit-*")))
    compiled = tiny("method=kd", "compile=aot_eager")
    assert counters["stats"]["unique_graphs"] >= before + 3  # the student's two modes, and the teacher
    assert len(list(store.glob("fit-*"))) == 2 * fits
    assert (as_written["compile"], compiled["compile"]) == (None, "aot_eager")
    assert compiled["metrics"] == pytest.approx(as_written["metrics"], abs=0.02)  # it may round differently


class Doubled(nn.Module):
    """An adapter."""

    def forward(self, student: torch.Tensor, teacher: None) -> tuple[torch.Tensor, None]:
        return 2 * student, teacher


def mean_square(student: torch.Tensor, teacher: None) -> torch.Tensor:
    return student.square().mean()


@pytest.fixture
def net() -> nn.Module:
    """A network that was compiled, and has run so."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    net.compile(backend="eager")
    with torch.no_grad():
        net(torch.randn(5, 1, 4, 4))
    return net


def test_what_goes_through_a_compiled_network_is_captured(net: nn.Module) -> None:
    x = torch.randn(5, 1, 4, 4)
    with torch.no_grad(), capture(net, inputs=("3",), outputs=("0",)) as taps:
        net(x)
    assert torch.equal(taps["0"], net[0](x))  # type: ignore[index]
    assert taps["3"].shape == (5, 8)


def test_taps_are_read_in_a_compiled_network(net: nn.Module) -> None:
    x, taps = torch.randn(5, 1, 4, 4), Taps(net, ["0", "3:input"])
    with torch.no_grad():
        taps.measure(lambda: net(x))
        seen = taps.run(lambda: net(x))
        assert torch.equal(seen["0"], net[0](x))  # type: ignore[index]
        assert seen["3:input"].shape == (5, 8)
        assert taps.run(lambda: net(x), output=False).keys() == {"0", "3:input"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_adapters_are_compiled() -> None:
    term = {"weight": 1.0, "student": "0", "teacher": None, "adapt": Doubled, "loss": mean_square}
    settings: Any = {"teacher": None, "task": Classification(3), "optimizer": torch.optim.SGD, "label": 0.0}
    net = nn.Sequential(nn.Linear(4, 3))
    method = Distill(student=net, terms={"norm": term, "plain": {**term, "adapt": None}}, **settings)
    method.build_terms((4,), None)
    seen, rows, graphs = method.look("student", torch.ones(2, 4), output=False), [], counters["stats"]["unique_graphs"]
    for _ in range(2):
        rows.append(method.terms["norm"](seen, {}, {"epoch": 0}, torch.Tensor.clone))
        compile_adapters(method, "eager")
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert rows[0] == rows[1] == 4 * seen["0"].square().mean()


def test_a_compiled_networks_batch_norms_are_seen(net: nn.Module) -> None:
    x, graphs = torch.randn(5, 1, 4, 4), counters["stats"]["unique_graphs"]
    with torch.no_grad():
        with BatchNormTap(net) as tap:
            net(x)
        torch.testing.assert_close(tap.statistics[0][0], net[0](x).mean((0, 2, 3)))  # type: ignore[index]
        net(x)
        assert counters["stats"]["unique_graphs"] == graphs  # runs compiled again, by the graph there was
        net.train()(x)
    assert counters["stats"]["unique_graphs"] == graphs + 1


def test_without_a_compiler_there_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("trainer.accelerator=cpu", "compile=inductor")
    monkeypatch.setattr(shutil, "which", {"g++": "/usr/bin/g++"}.get)
    assert not faults(cfg)
    monkeypatch.setenv("CXX", "mine")
    (line,) = faults(cfg)
    assert line.startswith("compile=inductor: takes a C++ compiler on a CPU, and there is no mine or clang++ or cl;")
    assert not faults(composed("trainer.accelerator=cpu", "compile=aot_eager"))


def test_an_unknown_compiler_is_refused() -> None:
    (line,) = faults(composed("compile=fast"))
    assert line.startswith("compile: expected one of inductor, cudagraphs, aot_eager or null, got")
