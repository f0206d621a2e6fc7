"""Detects masks of all zeros or all ones for a class while a counterfactual generator is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kd_lightning.core.collapse import Collapsed
from kd_lightning.core.notices import notice
from kd_lightning.methods.counterfactual.class_means import ClassMeans

MASK_REMEDY = (
    "Lower cgn.method.binary (lambda of the mask's entropy; method.binary with method=cgn), try another seed "
    "(method.on_collapse=restart does by itself), or another generator.gain beside it, of the orthogonal first weights"
)


class MaskMonitor(nn.Module):
    """The mean mask of every class over an epoch.

    A mask of all ones or zeros removes background or texture from an image, which then has no shape: labels of such
    counterfactuals mean nothing. Released CGNs for digits have means from .07, for the digit 1, to .23; masks cut from
    an instance-normalised map, as theirs are, cannot be above .5 on average, so that only zeros can occur there.
    The means are in the state dict, so that a resumed fit keeps them.

    Args:
        classes: number of classes.
        full: a class whose mean is above it has masks of ones.
        empty: a class whose mean is below it has masks of zeros.
        patience: epochs in a row before it is reported.
    """

    bad: Tensor
    warned: Tensor

    def __init__(self, classes: int, *, full: float = 0.95, empty: float = 0.02, patience: int = 2) -> None:
        super().__init__()
        self.full, self.empty, self.patience = full, empty, patience
        self.means = ClassMeans(classes)
        self.register_buffer("bad", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("warned", torch.zeros((), dtype=torch.bool))

    def add(self, mask: Tensor, y: Tensor) -> None:
        """Add masks (N, 1, H, W) in [0, 1] of classes (N,) int64, without synchronising with the device."""
        self.means.add(mask.detach().float().mean((1, 2, 3)), y)

    @torch.no_grad()
    def look(self, round_: int) -> Collapsed | None:
        """Check the means since the last check; returns a collapse that has lasted for ``patience`` checks, or None.

        Means are over all ranks, and the result is the same on each.

        Args:
            round_: rounds done, for the message.
        """
        means = self.means.take()  # NaN for a class without images, which is neither
        self.bad.copy_((self.bad + 1) * ((means > self.full) | (means < self.empty)))
        lost = self.bad >= self.patience
        found = [
            f"masks of {_listed(which)} {are} (mean {_range(means[which])})"
            for which, are in (
                (lost & (means > self.full), "are all ones: no background is left"),
                (lost & (means < self.empty), "are all zeros: no shape is left"),
            )
            if which.any()
        ]
        return Collapsed(round_, "; ".join(found), MASK_REMEDY) if found else None

    def tell(self, round_: int, on_collapse: Literal["warn", "restart"]) -> None:
        """Check, and warn once, or end the fit, which then starts over with another seed.

        Raises:
            Collapsed: ``on_collapse="restart"``, and masks have collapsed.
        """
        collapsed = self.look(round_)
        if collapsed is None:
            return
        if on_collapse == "restart":
            raise collapsed
        if not self.warned:
            self.warned.fill_(True)
            notice(f"{collapsed}. Its counterfactuals will teach nothing. {collapsed.remedy}", stacklevel=2)


def _listed(which: Tensor) -> str:
    classes: Sequence[int] = which.nonzero().flatten().tolist()
    if len(classes) == len(which):
        return "every class"
    return f"class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"


def _range(means: Tensor) -> str:
    low, high = (f"{float(m):.2g}" for m in (means.min(), means.max()))
    return low if low == high else f"{low} to {high}"
