"""Walks down the margin of a network to its decision boundary.

Heo et al., *Knowledge Distillation with Adversarial Samples Supporting Decision Boundary* (AAAI 2019). From an image of
its base class a walk goes down the margin to a target class until it has just crossed into that class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

CROSSED, THIRD, STEPS = range(3)
"""How a walk ended: in its target class, in a class that is neither base nor target, or out of steps."""


class Walk(NamedTuple):
    """Where walks ended.

    ``x``: the points (N, C, H, W); ``scores``: the network's logits there (N, K); ``reason``: CROSSED, THIRD or
    STEPS (N,); ``steps``: how many were taken (N,).
    """

    x: Tensor
    scores: Tensor
    reason: Tensor
    steps: Tensor

    @property
    def ok(self) -> Tensor:
        """Which of them support the boundary between base and target: bool (N,)."""
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
    """Go down L = f_base - f_target by steps of eta * (L + eps) along its gradient's direction until L < 0.

    The length of a step is in normalised units, x / std; the gradient counts by its direction alone. A walk
    ends by itself: each image's is the same whatever walks beside it. Draws no random number, and leaves the
    network, its gradients and its mode as they were: put it in eval mode first.

    Args:
        net: images (N, C, H, W) in data units to logits (N, K).
        x: where to begin.
        base: classes (N,) that the network gives these images.
        target: classes (N,) to walk to, other than ``base``.
        std: per channel (C, 1, 1), of the normalisation in whose units steps are taken.
        eta: length of a step for a margin of 1.
        eps: added to the margin, without which a walk would come ever nearer and never cross.
        max_steps: I_max, after which a walk is given up.
        score: what f is: ``logits``, or ``probs`` as in a third party's variant.
        box: lowest and highest pixel, in data units; None for no limits.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x, base, target = x.detach().clone(), base.clone(), target.clone()
        reason, steps = torch.full_like(base, STEPS), torch.zeros_like(base)
        scores: Tensor | None = None
        walking = torch.arange(len(x), device=x.device)
        for taken in range(max_steps + 1):  # the last time round only looks where it is
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
