"""Edited code and files of somebody's own make another key: what the old ones made is not served."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composition
from torch import nn

from kd_lightning.config.node import located
from kd_lightning.config.signatures import own_code
from kd_lightning.core.user_code import code_of, fingerprint
from kd_lightning.engine.fit import RunContext, fit_config
from kd_lightning.run.run import identity
from kd_lightning.store.artifacts import Store
from kd_lightning.tracking.backends import Dashboards

NET = """
from torch import nn
from own_parts.head import Head

class OwnNet(nn.Sequential):
    def __init__(self, num_classes, **rest):
        super().__init__(nn.Flatten(), nn.ReLU(), Head(num_classes))
"""
HEAD = """
from torch import nn

class Head(nn.LazyLinear):
    scale = 1
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes modules, as another process would find them: nothing of them is imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(**modules: str) -> None:
        for name, text in modules.items():
            file = tmp_path / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        forget()

    def forget() -> None:
        importlib.invalidate_caches()
        for name in set(sys.modules) - before:
            if name.startswith("own_"):
                del sys.modules[name]

    yield write
    forget()


def key(target: str) -> str | None:
    return code_of(located(target), target)


def test_a_module_and_what_it_imports_make_the_digest(written: Callable[..., None]) -> None:
    written(own_net=NET, own_parts__head=HEAD, own_parts__other="x = 1")
    first = key("own_net.OwnNet")
    assert first is not None
    written(own_parts__other="x = 2")
    assert key("own_net.OwnNet") == first, "nothing imports it"
    written(own_parts__head=HEAD.replace("scale = 1", "scale = 2"))
    second = key("own_net.OwnNet")
    assert second not in (None, first)
    written(own_net=NET.replace("ReLU", "Tanh"))
    assert key("own_net.OwnNet") not in (None, first, second)


def test_a_name_that_leads_elsewhere_counts_by_where_it_stands(written: Callable[..., None]) -> None:
    written(own_alias="from torchvision.models import resnet18 as net")
    first = key("own_alias.net")
    written(own_alias="from torchvision.models import resnet34 as net")
    assert None not in (first, key("own_alias.net"))
    assert key("own_alias.net") != first


@pytest.mark.parametrize("target", ["torch.nn.Linear", "lightning.Trainer", "kd_lightning.sources.real.Real"])
def test_the_library_and_its_dependencies_add_nothing(target: str) -> None:
    assert key(target) is None


def test_another_installed_package_counts_by_its_files() -> None:
    assert key("pytest.approx") is not None


def test_edited_code_is_another_fit_and_another_run(written: Callable[..., None], tmp_path: Path) -> None:
    def keys() -> tuple[str, str]:
        made = composition("method=supervised", "teacher=none", "controls=none", "student._target_=own_net.OwnNet")
        bench: Any = RunContext(store, None, "data", None, Dashboards())  # type: ignore[arg-type]
        return store.path("fit", fit_config(made, bench, "none")).name, store.path("run", identity(made, "d")).name

    store = Store(tmp_path / "store")
    written(own_net=NET, own_parts__head=HEAD)
    first, again = keys(), keys()
    assert first == again
    written(own_net=NET.replace("ReLU", "Tanh"))
    edited = keys()
    assert edited[0] != first[0]
    assert edited[1] != first[1]


def test_a_folder_that_own_code_is_given_counts_by_content(written: Callable[..., None], tmp_path: Path) -> None:
    written(own_net="def from_pretrained(folder):\n    ...")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"one")
    node = {"net": {"_target_": "own_net.from_pretrained", "folder": str(folder)}}
    first = own_code(node)
    (folder / "model.bin").write_bytes(b"two")
    assert own_code(node) != first


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by * self.weight


def test_a_network_in_memory_counts_by_code_settings_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(Scaled(1.0))
    assert fingerprint(Scaled(1.0)) == first
    assert fingerprint(Scaled(2.0)) != first, "an attribute that is no tensor"
    other = Scaled(1.0)
    other.weight.data.mul_(2)
    assert fingerprint(other) != first
    hooked = Scaled(1.0)
    hooked.register_forward_hook(lambda net, args, output: -output)
    assert fingerprint(hooked) != first

    def forward(self: Scaled, x: torch.Tensor) -> torch.Tensor:
        return x / self.by / self.weight

    forward.__qualname__ = Scaled.forward.__qualname__  # nothing but its code is another
    monkeypatch.setattr(Scaled, "forward", forward)
    assert fingerprint(Scaled(1.0)) != first


@pytest.mark.slow
def test_anew_for_the_student_only(tiny: Callable[..., Any], store: Path) -> None:
    def times() -> dict[str, int]:
        return {p.parent.name: p.stat().st_mtime_ns for p in store.glob("*/artifact.json")}

    first = tiny()
    before = times()
    anew = tiny("artifacts.reuse=false", "artifacts.scope=student")
    after = times()
    assert before.keys() == after.keys()
    made = {name for name in after if after[name] > before[name]}
    assert len(made) == 2, "the run and the student's fit, and no teacher"
    assert {name.partition("-")[0] for name in made} == {"run", "fit"}
    assert not anew["stored"]
    assert anew["metrics"] == first["metrics"]
