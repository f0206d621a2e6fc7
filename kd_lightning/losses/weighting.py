"""Several terms combined into one loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class ExponentialIncrement(nn.Module):
    """Sum over terms of exp(term - anchor): a term that rose since its anchor weighs more, one that fell less.

    RDSKD's remedy against conflicting losses (Han et al., ICASSP 2021). Anchors start at 0, are buffers (a resumed
    run continues exactly) and move to the terms' values at steps `anchor_at`, `anchor_at + anchor_every` ...

    Deviation: increments are cut to `limit`, because exp overflows soon after. Above it the gradient factor stays
    exp(limit), where a plain clamp would drop the term when it is largest.

    Args:
        names: of the terms.
        anchor_every: steps between two moves; 120, one epoch, in the authors' code.
        anchor_at: the step of each block, from 0, *after* whose loss the anchors move; 1 in the authors' code.
        limit: largest increment.
    """

    anchors: Tensor

    def __init__(
        self, names: Sequence[str], *, anchor_every: int = 120, anchor_at: int = 1, limit: float = 20.0
    ) -> None:
        super().__init__()
        if not 0 <= anchor_at < anchor_every:
            raise ValueError(f"anchor_at must be one of the steps 0..{anchor_every - 1}, got {anchor_at}")
        self.names = tuple(names)
        self.anchor_every = anchor_every
        self.anchor_at = anchor_at
        self.limit = limit
        self.register_buffer("anchors", torch.zeros(len(self.names)))

    def forward(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        """The loss at `step`, counted from 0 through all epochs; moves the anchors at the steps above."""
        if set(terms) != set(self.names):
            raise ValueError(f"expected the terms {sorted(self.names)}, got {sorted(terms)}")
        values = torch.stack([terms[name].float() for name in self.names])
        increment = values - self.anchors
        excess = (increment - self.limit).clamp(min=0).detach()
        loss = (increment - excess).exp().sum()
        if step % self.anchor_every == self.anchor_at:
            self.anchors.copy_(values.detach())
        return loss


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * term. A term of weight 0 may be absent; every term present needs a weight."""
    unweighted = sorted(set(terms) - set(weights))
    absent = sorted(name for name, weight in weights.items() if weight and name not in terms)
    if unweighted or absent or not terms:
        raise ValueError(f"terms and weights differ: no weight for {unweighted}, no term for {absent}")
    return torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()
