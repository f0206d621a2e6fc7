"""Generators that take turns in one network: what evolution needs to keep, vary, cross and select them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.losses.evolution import best_of_each

ChildAdam = Literal["inherit", "zero", "fresh"]
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""Where optimisers keep their running mean of gradients: Adam, SGD with momentum."""


@dataclass(frozen=True)
class Individual:
    """A generator that is not in the network now; nothing writes into its tensors.

    ``weights``: its state dict; ``moments``: the optimiser's state, a dict per parameter; ``operator``: what made it;
    ``images`` (N, C, H, W), ``labels`` (N,) and ``scores`` (N,): what it made of the evaluation's latents, of which
    classes, and the discriminator's scores; ``fitness``: the higher the better, a scalar of this rank until ranks have
    agreed on its mean.
    """

    weights: dict[str, Tensor]
    moments: list[dict[str, Any]]
    operator: str
    images: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    fitness: float | Tensor = 0.0

    def saved(self) -> dict[str, Any]:
        """Everything as tensors and plain values, for a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], device: torch.device) -> Individual:
        """What :meth:`saved` returned, on ``device``; step counts that an optimiser keeps on the CPU stay there."""
        here: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in saved.items()}
        here["weights"] = {k: v.to(device) for k, v in saved["weights"].items()}
        here["moments"] = [
            {k: v.to(device) if isinstance(v, Tensor) and v.dim() else v for k, v in each.items()}
            for each in saved["moments"]
        ]
        return cls(**here)


class Host:
    """One network with one optimiser, in which individuals take turns.

    Weights are written into the network's own tensors, so that whatever refers to them (an optimiser, DDP) stays valid,
    and are cloned when they are taken out: a state dict refers to the live ones. Learning rates are the optimiser's.

    Args:
        net: the generator.
        optimizer: of its weights; not Lightning's wrapper.
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        self.net, self.optimizer = net, optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.counts_there = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        self.live = net.state_dict()

    @torch.no_grad()
    def put(self, individual: Individual) -> None:
        """Give the network an individual's weights and the optimiser its state."""
        into, out = list(self.live.values()), [individual.weights[name] for name in self.live]
        for p, moments in zip(self.parameters, individual.moments, strict=True):
            state = self.optimizer.state[p]
            if state.keys() == moments.keys() and all(isinstance(v, Tensor) for v in state.values()):
                into += state.values()
                out += [moments[key] for key in state]
            else:
                state = self.optimizer.state[p] = _cloned(moments)
                if self.counts_there and "step" in state:  # a checkpoint's tensors are on the CPU
                    state["step"] = state["step"].to(p.device)
        torch._foreach_copy_(into, out)

    @torch.no_grad()
    def take(self, operator: str) -> Individual:
        """An individual with the present weights and optimiser's state, made by ``operator``."""
        moments = [_cloned(self.optimizer.state.get(p, {})) for p in self.parameters]
        return Individual(_cloned(self.live), moments, operator)

    def begin_child(self, how: ChildAdam) -> None:
        """Say what a child gets of the optimiser's state of the parent that was put in before.

        Args:
            how: ``inherit`` all of it, so that momentum moves the child even where it has nothing to learn; ``zero``
                the running mean of gradients, and keep the scale of the steps; ``fresh``: nothing, as in a first step.
        """
        if how == "fresh":
            self.optimizer.state.clear()
        elif how == "zero":
            for state in self.optimizer.state.values():
                for key in FIRST_MOMENTS:
                    if isinstance(state.get(key), Tensor):
                        state[key].zero_()


def couples(individuals: Sequence[Individual], number: int) -> list[tuple[Individual, Individual]]:
    """The ``number`` pairs with the highest sum of fitness, the fitter of each pair first."""
    pairs = [(b, a) if a.fitness < b.fitness else (a, b) for a, b in combinations(individuals, 2)]
    return sorted(pairs, key=lambda pair: pair[0].fitness + pair[1].fitness, reverse=True)[:number]


def lesson(pair: Sequence[Individual]) -> Tensor:
    """Images (N, C, H, W) that a child of the pair imitates: for each latent the parent's with the higher score."""
    images, scores = zip(*((each.images, each.scores) for each in pair), strict=True)
    return best_of_each(torch.stack(images), torch.stack(scores))


def fittest(individuals: Sequence[Individual], number: int) -> list[Individual]:
    """The ``number`` individuals of highest fitness, the fittest first; of equal ones the later made."""
    return sorted(individuals, key=lambda each: each.fitness)[::-1][:number]


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}
