"""Which operators evolution chooses, and whether its discriminator still has anything to learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.distributed import collectives
from kd_lightning.methods.base.population import Individual


class EvolutionMonitor(nn.Module):
    """Counts of survivors by the operator that made them, and the discriminator's errors in an epoch.

    The counts are in the state dict, so that a resumed fit keeps them.

    Args:
        operators: names of all that can make a survivor.
        least: fewest survivors from which a choice is said to be one-sided.
    """

    chosen: Tensor
    errors: Tensor
    seen: Tensor
    warned: Tensor

    def __init__(self, operators: Sequence[str], *, least: int = 20) -> None:
        super().__init__()
        self.operators, self.least = tuple(dict.fromkeys(operators)), least
        self.register_buffer("chosen", torch.zeros(len(self.operators), dtype=torch.long))
        self.register_buffer("errors", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("warned", torch.zeros((), dtype=torch.bool))

    def select(self, survivors: Sequence[Individual]) -> None:
        """Count the survivors of a generation."""
        for each in survivors:
            self.chosen[self.operators.index(each.operator)] += 1

    def shares(self) -> dict[str, Tensor]:
        """The share of all survivors that each operator has made, by ``chosen_OPERATOR``."""
        shares = self.chosen / self.chosen.sum().clamp(min=1)
        return {f"chosen_{name}": share for name, share in zip(self.operators, shares, strict=True)}

    def counts(self) -> dict[str, int]:
        """Survivors that each operator has made, by ``chosen/OPERATOR``."""
        return {f"chosen/{name}": n for name, n in zip(self.operators, self.chosen.tolist(), strict=True)}

    def tell_choice(self) -> None:
        """Warn if one of several operators has made every survivor."""
        counts = self.chosen.tolist()
        if len(counts) > 1 and max(counts) == sum(counts) >= self.least:
            only = self.operators[counts.index(max(counts))]
            words = {
                "crossover": "A child that keeps its parent's momentum is preferred for that, not for what it learned: "
                "compare method.child_adam=zero",
                "least_squares": "The loss of the largest gradient sets the scale of all steps: compare "
                "method.mutation_grad=unit",
            }
            warnings.warn(
                f"all {sum(counts):,} survivors were made by {only}: the other operators were never chosen. "
                + words.get(only, f"Without the others, method.mutations=[{only}] costs less"),
                stacklevel=2,
            )

    @torch.no_grad()
    def count_errors(self, on_real: Tensor, on_made: Tensor) -> None:
        """Add logits of real and of made images, without synchronising with the device."""
        self.errors += (on_real <= 0).sum() + (on_made >= 0).sum()
        self.seen += len(on_real) + len(on_made)

    def tell_errors(self, epoch: int) -> None:
        """Warn once if no image of the epoch was misjudged on any rank; then begin to count anew.

        Args:
            epoch: that ends, counted from 1.
        """
        wrong = int(collectives.largest(self.errors))
        if wrong == 0 and self.seen and not self.warned:
            self.warned.fill_(True)
            warnings.warn(
                f"the discriminator was right about every one of {int(self.seen):,} images in epoch {epoch}: "
                "generators learn little from it, and minimax nothing. Lower method.optimizer_d.lr or method.d_steps, "
                "or raise method.penalty",
                stacklevel=2,
            )
        self.errors.zero_()
        self.seen.zero_()


def has_batch_norm(net: nn.Module) -> bool:
    """Whether what a network says of an image depends on the others of its batch."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def warn_of_mixing() -> None:
    """Warn of a gradient penalty, which is per image, of a discriminator that mixes the images of a batch."""
    warnings.warn(
        "method.penalty is per image, but the discriminator has batch norm, by which an image's score depends on the "
        "others (the authors' networks are like that): set method.discriminator.norm=none, or method.penalty=0",
        stacklevel=2,
    )
