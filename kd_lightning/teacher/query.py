"""A teacher that only answers: every image asked about is counted, and a budget is never exceeded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_lightning.errors import BudgetExceeded
from kd_lightning.ranks import world
from kd_lightning.teacher.access import degrade


def answering(net: nn.Module, level: str, *, decimals: int | None = None, k: int = 5) -> Callable[[Tensor], Tensor]:
    """A function from images (N, C, H, W) in [0, 1] to answers (N, K) of that access level, without gradients."""
    net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def answer(x: Tensor) -> Tensor:
        net.to(x.device)
        return degrade(net(x.detach()), level, decimals=decimals, k=k)

    return answer


class QueryTeacher:
    """What a method is handed below ``white``: something to ask, no module, no parameters, no gradient.

    Args:
        ask: answers a batch of images (N, C, H, W) in [0, 1] with (N, K) usable as logits.
        access: the level of those answers.
        budget: most images that may ever be asked about in training; None for no limit.
        eval_budget: most images that may be asked about to measure the teacher, a bucket of its own.
    """

    def __init__(
        self,
        ask: Callable[[Tensor], Tensor],
        *,
        access: str,
        budget: int | None = None,
        eval_budget: int = 0,
    ) -> None:
        self._ask = ask
        self.access = access
        self.budget, self.eval_budget = budget, eval_budget
        self.asked = self.asked_for_evaluation = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Answer a batch; ranks ask as many each, and count them all.

        Raises:
            BudgetExceeded: the batch does not fit into what is left; nothing is asked.
        """
        images = len(x) * world()
        self.require(images)
        self.asked += images
        return self._ask(x)

    def require(self, images: int) -> None:
        """Make sure that so many more may be asked about.

        Raises:
            BudgetExceeded: they do not fit into what is left of the budget.
        """
        if self.budget is not None and self.asked + images > self.budget:
            raise BudgetExceeded(
                f"teacher.budget={self.budget} images: {self.asked} asked, {images} more wanted. Raise teacher.budget, "
                "or ask once about fewer and train on the stored answers with source=queried source.images=N"
            )

    def for_evaluation(self, x: Tensor) -> Tensor | None:
        """Answer a batch out of the evaluation bucket, or None where it is empty."""
        if self.asked_for_evaluation + len(x) > self.eval_budget:
            return None
        self.asked_for_evaluation += len(x)
        return self._ask(x)
