"""Protocols of what a method needs of its teacher and its task."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torchmetrics import Metric


class Teacher(Protocol):
    """Answers images (N, C, H, W) in [0, 1] with (N, K), and counts them."""

    asked: int

    @property
    def access(self) -> str:
        """Access level: ``white``, ``logits``, ``probs``, ``topk`` or ``label``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K), or what the access level reveals."""


@runtime_checkable
class WhiteTeacher(Teacher, Protocol):
    """A white-box teacher: its network may be used, and gradients reach the images."""

    @property
    def net(self) -> nn.Module:
        """The network itself, in eval mode."""

    def standardise(self, x: Tensor) -> Tensor:
        """Images x as normalised for the network, the space in which papers take losses on pixels."""


class Task(Protocol):
    """What a network's output means."""

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss of outputs (N, K) against labels (N,), a scalar."""

    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics of output against label, by name."""

    def agreement(self) -> Metric:
        """A fresh metric of student output against teacher output."""

    def described(self) -> dict[str, Any]:
        """A description in plain data, for results."""
