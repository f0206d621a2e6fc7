"""A run imports few libraries, and nothing that is left out is missed later."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUN = """
import sys
from kd_lightning.core.light_imports import import_lightly

import_lightly(["kd_lightning.methods.real_data.distill.Distill", "torch.optim.Adam"])
import kd_lightning.run.run
from kd_lightning.data.datasets import digits

assert len(digits.load().test) == 359
loaded = {"scipy", "matplotlib", "torchvision", "sklearn", "torch._dynamo", "sympy"} & set(sys.modules)
assert not loaded, loaded
"""
LATER = """
import torch
import lightning.fabric.wrappers as wrappers
from torch import nn
from torchmetrics.utilities import imports

assert imports._SCIPY_AVAILABLE and imports._TORCHVISION_AVAILABLE
net = nn.Linear(1, 1)
assert not isinstance(net, wrappers.OptimizedModule)
assert isinstance(torch.compile(net), wrappers.OptimizedModule)
assert hasattr(sys.modules["torch._dynamo"], "explain")
"""


@pytest.mark.slow
def test_a_run_imports_little_and_the_rest_works_later() -> None:
    subprocess.run([sys.executable, "-c", RUN + LATER], check=True)


@pytest.mark.slow
def test_code_of_others_finds_everything() -> None:
    code = """
from kd_lightning.core.light_imports import import_lightly

import_lightly(["my_net.Net"])
import sys

assert "torchmetrics" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
