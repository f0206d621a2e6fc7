"""A teacher that draws: asked with latents and labels, it answers with a mechanism's image and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import TeacherError
from kd_lightning.networks.generators.cgn import drawn_by
from kd_lightning.networks.weights import load_weights

PER_CALL = 500


class DrawingTeacher:
    """The black box of SKDCGN: (z, y) to images. It shows no module, no parameter and no gradient.

    Args:
        generator: a network with ``draw(im, z, y)``, or one of latents and labels that is all of one mechanism.
        weights: its weights, ``stage:NAME/generator.safetensors`` or a file; None leaves it as it is.
        device: where it draws.

    Raises:
        TeacherError: the file cannot be read, or holds another network.
    """

    __slots__ = ("_ask", "_seen", "asked", "latents")

    def __init__(self, generator: nn.Module, weights: str | None = None, *, device: str = "cpu") -> None:
        if weights is not None:
            load_weights(generator, weights)
        generator.eval().requires_grad_(False).to(device)
        self.asked = 0
        self._seen: set[str] = set()

        @torch.no_grad()
        def ask(im: str, z: Tensor, y: Tensor) -> Tensor:
            return drawn_by(generator, im, z.to(device), y.to(device))

        self._ask = ask
        self.latents = lambda n, length, rng: latents_of(generator, n, length, rng)

    def sample(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """Images of a mechanism, without a gradient.

        Args:
            im: ``shape``, ``fg`` or ``bg``.
            z: latents (N, latent).
            y: labels (N,), int64.

        Returns:
            Masks (N, 1, H, W) for ``shape``, else textures (N, C, H, W), in [0, 1].

        Raises:
            TeacherError: its first answer has another shape, another range, or no numbers.
        """
        answer = self._ask(im, z, y)
        self.asked += len(y)
        if im not in self._seen:  # the first answer tells, and later ones need not wait for the device
            _check(answer, im, len(y))
            self._seen.add(im)
        return answer.clamp(0, 1)


def latents_of(generator: nn.Module, n: int, length: int, rng: torch.Generator) -> Tensor:
    """Latents (n, length) as a generator was trained on: its own ``latents``, or z ~ N(0, I)."""
    if hasattr(generator, "latents"):
        return cast(Any, generator).latents(n, length, rng)
    return torch.randn(n, length, generator=rng, device=rng.device)


class KeptDrawings:
    """What a mechanism drew once, asked in its place: the first number of z says which picture of the label's it is.

    Args:
        drawer: asked now, and never again.
        im: the mechanism.
        latent: length of z.
        classes: of the labels, which are equally often among the pictures.
        pictures: how many, at least one of each class.
        rng: of the latents, on the drawer's device.
    """

    def __init__(
        self, drawer: DrawingTeacher, im: str, *, latent: int, classes: int, pictures: int, rng: torch.Generator
    ) -> None:
        self.each = max(pictures // classes, 1)
        labels = torch.arange(classes, device=rng.device).repeat_interleave(self.each)
        self.pictures = torch.cat(
            [drawer.sample(im, drawer.latents(len(y), latent, rng), y) for y in labels.split(PER_CALL)]
        )

    def latents(self, n: int, length: int, rng: torch.Generator) -> Tensor:
        """Z ~ N(0, I), (n, length), whatever the drawer's are."""
        return torch.randn(n, length, generator=rng, device=rng.device)

    def sample(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """Pictures (N, C, H, W) of labels (N,): where z ~ N(0, I), each of a label's is as likely as another."""
        number = (torch.special.ndtr(z[:, 0]) * self.each).long().clamp(max=self.each - 1)
        return self.pictures[y * self.each + number]


def _check(answer: Tensor, im: str, n: int) -> None:
    wanted: Sequence[object] = (n, 1 if im == "shape" else "C", "H", "W")
    if answer.dim() != 4 or len(answer) != n or (im == "shape" and answer.shape[1] != 1):
        raise TeacherError(
            f"the drawing teacher answers {im} with {tuple(answer.shape)}, expected ({', '.join(map(str, wanted))})"
        )
    low, high = float(answer.min()), float(answer.max())
    if not (low >= -0.01 and high <= 1.01):  # NaN is neither
        raise TeacherError(
            f"the drawing teacher answers {im} in [{low:.3g}, {high:.3g}], expected [0, 1]: a generator whose last "
            "layer is tanh has to convert its images, (x + 1) / 2"
        )
