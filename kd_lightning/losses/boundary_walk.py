"""Walks down the margin of a network to its decision boundary.

Heo et al., *Knowledge Distillation with Adversarial Samples Supporting Decision Boundary* (AAAI 2019). A walk starts at
an image of its base class and goes down the margin to a target class until it has just crossed into that class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

CROSSED, THIRD, STEPS = range(3)
"""How a walk ended: in its target class, in a class that is neither base nor target, or out of steps."""


class Walk(NamedTuple):
    """End points of walks.

    ``x``: the points (N, C, H, W); ``scores``: the network's logits there (N, K); ``reason``: CROSSED, THIRD or
    STEPS (N,); ``steps``: number of steps taken (N,).
    """

    x: Tensor
    scores: Tensor
    reason: Tensor
    steps: Tensor

    @property
    def ok(self) -> Tensor:
        """Which points support the boundary between base and target: bool (N,)."""
        return self.reason == CROSSED


def boundary_walk(
    net: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    base: Tensor,
    target: Tensor,
    *,
    std: Tensor | float = 1.0,
    eta: float = 0.3,
    eps: float = 1e-4,
    max_steps: int = 10,
    score: Literal["logits", "probs"] = "logits",
    box: tuple[Tensor | float, Tensor | float] | None = (0.0, 1.0),
) -> Walk:
    """Descend L = f_base - f_target by steps of length eta * (L + eps) along its gradient until L < 0.

    The length of a step is in normalised units, x / std; only the direction of the gradient counts. Each image
    walks independently of the others in the batch. The function draws no random number and leaves the network,
    its gradients and its mode as they were: put the network in eval mode first.

    Args:
        net: images (N, C, H, W) in data units to logits (N, K).
        x: starting points (N, C, H, W).
        base: classes (N,) that the network predicts for these images.
        target: classes (N,) to walk to, other than ``base``.
        std: of the normalisation, per channel (C, 1, 1); it sets the unit of a step.
        eta: length of a step for a margin of 1.
        eps: added to the margin; without it a walk would approach the boundary and never cross.
        max_steps: I_max, the most steps of a walk.
        score: what f is: ``logits``, or ``probs`` as in a reimplementation by a third party.
        box: lowest and highest pixel value, in data units; None for no limits.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x, base, target = x.detach().clone(), base.clone(), target.clone()
        reason, steps = torch.full_like(base, STEPS), torch.zeros_like(base)
        scores: Tensor | None = None
        walking = torch.arange(len(x), device=x.device)
        for taken in range(max_steps + 1):  # the last round takes no step, it only checks the class
            here, b, k = x[walking].requires_grad_(), base[walking], target[walking]
            answer = net(here)
            f = answer.softmax(1) if score == "probs" else answer
            margin = (f.gather(1, b[:, None]) - f.gather(1, k[:, None])).squeeze(1)
            if scores is None:
                scores = torch.empty_like(answer)
            scores = scores.detach().index_copy(0, walking, answer.detach())

            top = f.argmax(1)
            crossed, third = (margin < 0) & (top == k), (top != b) & (top != k)
            reason[walking[crossed]], reason[walking[third]] = CROSSED, THIRD
            on = ~(crossed | third)
            if taken == max_steps or not on.any():
                break
            slope = torch.autograd.grad(margin.sum(), here)[0][on] * std
            norm = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
            length = eta * (margin.detach()[on] + eps) / norm
            walking = walking[on]
            moved = x[walking] - std * length.view(-1, 1, 1, 1) * slope
            x[walking] = moved if box is None else torch.clamp(moved, *_tensors(box, x))
            steps[walking] += 1
    assert scores is not None
    return Walk(x, scores, reason, steps)


def _tensors(box: tuple[Tensor | float, Tensor | float], like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(edge, dtype=like.dtype, device=like.device) for edge in box)
    return low, high
