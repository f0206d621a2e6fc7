"""Losses by which E-GAN and CE-GAN vary a generator, the length of their gradients, and how many variants they take.

E-GAN: Wang et al., IEEE TEVC 2019; CE-GAN: Li et al., IJCNN 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from kd_lightning.errors import ConfigError
from kd_lightning.losses.gan import heuristic_g, least_squares_g, minimax_g

MUTATIONS = {"heuristic": heuristic_g, "least_squares": least_squares_g, "minimax": minimax_g}


def unit_length(parameters: Sequence[nn.Parameter]) -> None:
    """Scale all gradients together to length 1; gradients of 0 stay."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_div_(gradients, length.clamp(min=torch.finfo(length.dtype).tiny))


def check_sizes(mutations: Sequence[str], population: int, crossovers: int, draws: str) -> None:
    """Refuse settings that leave a crossover without its two parents.

    Raises:
        ConfigError: says which, and what to set.
    """
    unknown = [name for name in mutations if name not in MUTATIONS]
    if unknown or not mutations:
        raise ConfigError(f"method.mutations={list(mutations)}: expected one or more of {', '.join(MUTATIONS)}")
    if population < 1 or crossovers < 0:
        raise ConfigError(
            f"method.population={population}, method.crossovers={crossovers}: expected 1 or more, 0 or more"
        )
    mutants = population * len(mutations)
    if crossovers > math.comb(mutants, 2):
        raise ConfigError(
            f"method.crossovers={crossovers}: a population of {population} with {len(mutations)} mutation(s) has "
            f"{mutants} mutant(s), of which there are {math.comb(mutants, 2)} pair(s): set method.population="
            f"{population + 1} or more, or method.crossovers={math.comb(mutants, 2)}"
        )
    if crossovers and draws == "fresh":
        raise ConfigError(
            "method.draws=fresh: a crossover compares two generators on the same latents: set method.draws=common, or "
            "method.crossovers=0"
        )
