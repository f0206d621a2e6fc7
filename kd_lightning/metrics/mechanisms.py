"""Comparison of students with the mechanisms of a counterfactual generator: size, masks, images, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.dataset import Split
from kd_lightning.losses.counterfactual import MECHANISMS, compose
from kd_lightning.metrics.generator_quality import extractor, fid, kid, mask_iou, mask_statistics, mask_to_label
from kd_lightning.networks.generators.cgn import Together
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.teachers.generator import latents_of
from kd_lightning.tracking.image_grids import save_grid, to_uint8


class Mechanisms:
    """A metric that compares students with the generator they learned from, on the same latents and labels.

    Args:
        teacher: a generator with all mechanisms: ``generator`` and its ``weights``.
        students: the same for each of ``shape``, ``fg`` and ``bg``.
        latent: length of z.
        digits: a classifier of clean binary shapes, ``network`` and its ``weights``: it classifies masks and gives
            the features of FID and KID. None leaves out these numbers.
        images: number of images to compare.
        seed: of latents and labels.
    """

    needs = frozenset({"task.classification"})

    def __init__(
        self,
        *,
        teacher: Mapping[str, Any],
        students: Mapping[str, Mapping[str, Any]],
        latent: int,
        digits: Mapping[str, Any] | None = None,
        images: int = 2000,
        seed: int = 0,
    ) -> None:
        self.teacher, self.students, self.digits = teacher, students, digits
        self.latent, self.images, self.seed = latent, images, seed

    @torch.no_grad()
    def __call__(
        self, student: nn.Module | None, teacher: Any, split: Split, *, device: str = "cpu", samples: Path | None = None
    ) -> dict[str, float | None]:
        """Compute the numbers by name, and draw the picture ``samples/mechanisms.png``.

        Args:
            student: the classifier of the run; not used.
            teacher: of the run; not used.
            split: the test images, whose labels give the number of classes.
            device: where to draw.
            samples: folder of the picture; None draws none.
        """
        big = _loaded(self.teacher, device)
        small = Together(**{im: _loaded(self.students[im], device) for im in MECHANISMS})
        rng = torch.Generator().manual_seed(self.seed)
        classes = int(split.labels.max()) + 1
        y = (torch.arange(self.images) % classes).to(device)
        z = latents_of(big, self.images, self.latent, rng).to(device)
        drawn = {name: _drawn(net, z, y) for name, net in (("teacher", big), ("student", small))}
        if samples is not None:
            rows = [f"{im}, {who}" for im in (*MECHANISMS, "composite") for who in drawn]
            images = _rows(drawn["teacher"], drawn["student"], classes)
            save_grid(images, samples / "mechanisms.png", columns=classes, rows=rows)
        return self._numbers(drawn, y)

    def _numbers(self, drawn: Mapping[str, dict[str, Tensor]], y: Tensor) -> dict[str, float | None]:
        told, made = drawn["teacher"], drawn["student"]
        found: dict[str, float | None] = {"mask_iou": mask_iou(made["shape"], told["shape"])}
        found |= {f"{im}_l1": float((made[im] - told[im]).abs().mean()) for im in MECHANISMS}
        net = None
        if self.digits is not None:
            net = self.digits["network"]
            net = Normalized(net, mean=self.digits["mean"], std=self.digits["std"]) if "mean" in self.digits else net
            load_weights(net, self.digits["weights"])
            net.eval().to(y.device)
        for name, parts in drawn.items():
            of = mask_statistics(parts["shape"])
            found |= {f"{name}_mask_mean": of.mean, f"{name}_mask_entropy": of.entropy}
            if net is not None:
                found[f"{name}_mask_accuracy"] = mask_to_label(net, parts["shape"], y)
        if net is not None:
            seen_by = extractor(net)
            features = [seen_by(compose(*(parts[im] for im in MECHANISMS))) for parts in (told, made)]
            found |= {"FID-digits_cnn": fid(*features), "KID-digits_cnn": kid(*features)}
        return found


class Compression:
    """A metric: the parameters of a generator divided by those of all its students.

    Args:
        teacher: the generator.
        students: ``shape``, ``fg`` and ``bg``, each with its ``generator``.
    """

    needs = frozenset[str]()

    def __init__(self, *, teacher: nn.Module, students: Mapping[str, Mapping[str, Any]]) -> None:
        self.sizes = _size(teacher), sum(_size(node["generator"]) for node in students.values())

    def __call__(self, *networks: Any, **where: Any) -> dict[str, float | None]:
        """The factor under the key ``""``, and the number of the students' parameters."""
        return {"": self.sizes[0] / self.sizes[1], "parameters": float(self.sizes[1])}


def _loaded(node: Mapping[str, Any], device: str) -> nn.Module:
    load_weights(node["generator"], node["weights"])
    return node["generator"].eval().requires_grad_(False).to(device)


def _drawn(net: nn.Module, z: Tensor, y: Tensor) -> dict[str, Tensor]:
    batches = zip(z.split(500), y.split(500), strict=True)
    parts = [[net.draw(im, *pair) for im in MECHANISMS] for pair in batches]  # type: ignore[operator]
    return {im: torch.cat([part[i] for part in parts]) for i, im in enumerate(MECHANISMS)}


def _rows(told: dict[str, Tensor], made: dict[str, Tensor], classes: int) -> Tensor:
    """Uint8 images, a column per class: masks, textures, backgrounds, composites; the teacher's rows first."""
    rows = []
    for im in (*MECHANISMS, "composite"):
        for parts in (told, made):
            first = {k: v[:classes] for k, v in parts.items()}
            row = compose(*(first[k] for k in MECHANISMS)) if im == "composite" else first[im]
            rows.append(to_uint8(row).expand(-1, 3, -1, -1))
    return torch.cat(rows)


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
