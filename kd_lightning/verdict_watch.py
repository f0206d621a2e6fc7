"""Notices classes that a generator has lost: its discriminator knows every image of them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from kd_lightning import ranks


class VerdictWatch(nn.Module):
    """The discriminator's mean verdict of real and of made images of every class over an epoch.

    Trained towards 1 and 0 by least squares, the two are about alike where a class is drawn well, and some .9 apart
    where object and background of a class have changed places, or a texture paints the shape. What was counted is in
    the state dict, so that a resumed fit goes on.

    Args:
        classes: how many.
        apart: a class whose verdicts are further apart is lost.
    """

    total: Tensor
    count: Tensor

    def __init__(self, classes: int, *, apart: float = 0.75) -> None:
        super().__init__()
        self.apart = apart
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(2, classes))

    @torch.no_grad()
    def add(self, on_real: Tensor, y: Tensor, on_made: Tensor, made_y: Tensor) -> None:
        """Count verdicts (N,) of real and (M,) of made images of classes (N,) and (M,) int64; waits for no device."""
        for row, (verdicts, labels) in enumerate(((on_real, y), (on_made, made_y))):
            self.total[row].index_add_(0, labels, verdicts.detach().float())
            self.count[row].index_add_(0, labels, torch.ones_like(labels, dtype=self.count.dtype))

    @torch.no_grad()
    def look(self) -> dict[int, tuple[float, float]]:
        """Lost classes since the last look, and their verdicts of real and made images; alike on every rank."""
        total, count = ranks.mean(torch.stack([self.total, self.count]))
        real, made = total / count  # NaN where no image was, which is apart from nothing
        self.total.zero_()
        self.count.zero_()
        lost = (real - made > self.apart).nonzero().flatten().tolist()
        return {k: (float(real[k]), float(made[k])) for k in lost}

    def tell(self) -> None:
        """Look, and warn of classes that are lost."""
        if lost := self.look():
            classes, them = ("classes", "them") if len(lost) > 1 else ("class", "it")
            seen = ", ".join(f"{k} ({real:.2f} against {made:.2f})" for k, (real, made) in lost.items())
            warnings.warn(
                f"lost {classes} {seen}: the discriminator tells all that is drawn of {them} from real images, and "
                "such counterfactuals will teach nothing. Look at samples/, and try another seed or a longer "
                "trainer.max_epochs",
                stacklevel=2,
            )
