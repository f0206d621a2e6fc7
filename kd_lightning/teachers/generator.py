"""A generator as a teacher: latents and labels in, images of one mechanism (mask, texture or background) out."""

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
    """The black-box teacher of SKDCGN: (z, y) to images; it exposes no module, parameter or gradient.

    Args:
        generator: a network with ``draw(im, z, y)``, or a network of latents and labels for a single mechanism.
        weights: its weights, ``stage:NAME/generator.safetensors`` or a file; None keeps the network as it is.
        device: on which it generates.

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
        """Images of one mechanism, without gradient.

        Args:
            im: ``shape``, ``fg`` or ``bg``.
            z: latents (N, latent).
            y: labels (N,), int64.

        Returns:
            Masks (N, 1, H, W) for ``shape``, else textures (N, C, H, W), in [0, 1].

        Raises:
            TeacherError: the first answer has a wrong shape or range, or is NaN.
        """
        answer = self._ask(im, z, y)
        self.asked += len(y)
        if im not in self._seen:  # only the first answer is checked: a check waits for the device
            _check(answer, im, len(y))
            self._seen.add(im)
        return answer.clamp(0, 1)


def latents_of(generator: nn.Module, n: int, length: int, rng: torch.Generator) -> Tensor:
    """Latents (n, length) of the generator's training distribution: its own ``latents``, or z ~ N(0, I)."""
    if hasattr(generator, "latents"):
        return cast(Any, generator).latents(n, length, rng)
    return torch.randn(n, length, generator=rng, device=rng.device)


class KeptDrawings:
    """Images of a mechanism, generated once and looked up afterwards; z[:, 0] selects the image within the label.

    Args:
        drawer: the teacher, queried only in the constructor.
        im: the mechanism.
        latent: length of z.
        classes: number of labels, equally frequent among the images.
        pictures: number of images, at least one per class.
        rng: for the latents, on the drawer's device.
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
        """Latents z ~ N(0, I), (n, length), whatever the drawer's distribution."""
        return torch.randn(n, length, generator=rng, device=rng.device)

    def sample(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) of labels (N,); z ~ N(0, I) selects uniformly among the images of a label."""
        number = (torch.special.ndtr(z[:, 0]) * self.each).long().clamp(max=self.each - 1)
        return self.pictures[y * self.each + number]


def _check(answer: Tensor, im: str, n: int) -> None:
    wanted: Sequence[object] = (n, 1 if im == "shape" else "C", "H", "W")
    if answer.dim() != 4 or len(answer) != n or (im == "shape" and answer.shape[1] != 1):
        raise TeacherError(
            f"the drawing teacher answers {im} with {tuple(answer.shape)}, expected ({', '.join(map(str, wanted))})"
        )
    low, high = float(answer.min()), float(answer.max())
    if not (low >= -0.01 and high <= 1.01):  # false for NaN as well
        raise TeacherError(
            f"the drawing teacher answers {im} in [{low:.3g}, {high:.3g}], expected [0, 1]: a generator whose last "
            "layer is tanh has to convert its images, (x + 1) / 2"
        )
