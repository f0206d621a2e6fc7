"""Quality of the generator that a run has trained, beside real images held out (``metrics=generation``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.core.inference import predict
from kd_lightning.data.dataset import Split
from kd_lightning.metrics.generator_quality import extractor, fid, kid
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.tracking.image_grids import save_grid, to_uint8


class Generation:
    """A metric: FID and KID by a named classifier's features, classes covered, and a picture.

    The classifier is the run's teacher unless another is given. Compare numbers only of the same one, and of equally
    many images: see :func:`~kd_lightning.metrics.generator_quality.fid`.

    Args:
        generator: latents (N, latent), and labels (N,) if ``conditional``, to images in [0, 1].
        latent: length of z.
        name: of the classifier, in the names of the numbers.
        prior: of z, ``uniform`` in [-1, 1] or ``normal``.
        conditional: whether the generator takes labels, which are then drawn evenly.
        classifier: ``network`` and its ``weights``, with ``mean`` and ``std`` of its images if it does not normalise
            them itself; None takes the teacher.
        images: number of generated images; None takes as many as there are test images.
        share: a class that fewer of the images belong to, by the classifier, is not covered.
        seed: of latents and labels.
    """

    needs = frozenset({"task.classification", "generator"})

    def __init__(
        self,
        *,
        generator: nn.Module,
        latent: int,
        name: str = "teacher",
        prior: Literal["uniform", "normal"] = "normal",
        conditional: bool = False,
        classifier: Mapping[str, Any] | None = None,
        images: int | None = None,
        share: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.generator, self.latent, self.name, self.prior = generator, latent, name, prior
        self.conditional, self.classifier, self.images, self.share, self.seed = (
            conditional,
            classifier,
            images,
            share,
            seed,
        )

    @torch.no_grad()
    def __call__(
        self,
        student: nn.Module | None,
        teacher: Any,
        split: Split,
        *,
        weights: Path,
        device: str = "cpu",
        samples: Path | None = None,
    ) -> dict[str, float | None]:
        """``FID-NAME``, ``KID-NAME``, ``classes``, and ``entropy`` of the classes as a share of its maximum.

        Args:
            student: the classifier of the run; not used.
            teacher: of the run, or None.
            split: the test images.
            weights: file of the generator's.
            device: where to draw.
            samples: folder of the picture ``drawn.png``; None draws none.
        """
        load_weights(self.generator, weights)
        net = self.generator.eval().requires_grad_(False).to(device)
        classes = int(split.labels.max()) + 1
        made = to_uint8(self.drawn(net, self.images or len(split), classes, device))
        if samples is not None:
            save_grid(made[:100], samples / "drawn.png")
        judge = self.judge(teacher, device)
        if judge is None:
            return {}
        features = extractor(judge)
        ours, real = (features(images.to(device).float() / 255) for images in (made, split.images))
        shares = predict(judge, made, device=device).argmax(1).bincount().double() / len(made)
        entropy = torch.special.entr(shares).sum() / math.log(classes)
        return {
            f"FID-{self.name}": fid(ours, real),
            f"KID-{self.name}": kid(ours, real),
            "classes": float((shares >= self.share).sum()),
            "entropy": float(entropy),
        }

    def drawn(self, net: nn.Module, n: int, classes: int, device: str) -> Tensor:
        """Images (n, C, H, W) of latents drawn by the seed, the same on every device."""
        rng = torch.Generator().manual_seed(self.seed)
        shape = (n, self.latent)
        z = 2 * torch.rand(shape, generator=rng) - 1 if self.prior == "uniform" else torch.randn(shape, generator=rng)
        y = torch.arange(n) * classes // n
        parts = zip(z.to(device).split(500), y.to(device).split(500), strict=True)
        return torch.cat([net(*part) if self.conditional else net(part[0]) for part in parts]).clamp(0, 1)

    def judge(self, teacher: Any, device: str) -> nn.Module | None:
        """The classifier on ``device``; None where there is neither one of its own nor a teacher."""
        if self.classifier is None:
            return None if teacher is None else teacher.to(device)
        net = self.classifier["network"]
        net = (
            Normalized(net, mean=self.classifier["mean"], std=self.classifier["std"])
            if "mean" in self.classifier
            else net
        )
        load_weights(net, self.classifier["weights"])
        return net.eval().to(device)
