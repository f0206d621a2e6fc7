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


@runtime_checkable
class AskedTeacher(Teacher, Protocol):
    """A teacher that only answers, for methods that ask it while they train."""

    def answered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (M,) of the images of this rank's batch that it answered, and its answers (M, K)."""

    def require(self, images: int) -> None:
        """Check that so many images in all fit into its budget; BudgetExceeded if not."""


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
