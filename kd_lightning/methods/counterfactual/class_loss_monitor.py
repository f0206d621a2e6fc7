"""Detects classes that a generator has lost: its discriminator recognises every generated image of them."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.core.notices import notice
from kd_lightning.methods.counterfactual.class_means import ClassMeans


class ClassLossMonitor(nn.Module):
    """The discriminator's mean score of real and of generated images of every class over an epoch.

    Trained towards 1 and 0 by least squares, the two are about equal where a class is drawn well, and about .9 apart
    where object and background of a class are swapped, or the texture draws the shape. The means are in the state
    dict, so that a resumed fit keeps them.

    Args:
        classes: number of classes.
        apart: a class whose scores are further apart is lost.
    """

    def __init__(self, classes: int, *, apart: float = 0.75) -> None:
        super().__init__()
        self.apart = apart
        self.real, self.made = ClassMeans(classes), ClassMeans(classes)

    def add(self, on_real: Tensor, y: Tensor, on_made: Tensor, made_y: Tensor) -> None:
        """Add scores (N,) of real and (M,) of generated images, with their classes int64, without synchronising."""
        self.real.add(on_real, y)
        self.made.add(on_made, made_y)

    def look(self) -> dict[int, tuple[float, float]]:
        """Classes lost since the last check, with their scores of real and generated images; the same on every rank."""
        real, made = self.real.take(), self.made.take()
        lost = (real - made > self.apart).nonzero().flatten().tolist()  # False for NaN
        return {k: (float(real[k]), float(made[k])) for k in lost}

    def tell(self) -> None:
        """Check, and warn of classes that are lost."""
        if lost := self.look():
            classes, them = ("classes", "them") if len(lost) > 1 else ("class", "it")
            seen = ", ".join(f"{k} ({real:.2f} against {made:.2f})" for k, (real, made) in lost.items())
            notice(
                f"lost {classes} {seen}: the discriminator tells all that is drawn of {them} from real images, and "
                "such counterfactuals will teach nothing. Look at samples/, and try another seed or a longer "
                "trainer.max_epochs",
                stacklevel=2,
            )
