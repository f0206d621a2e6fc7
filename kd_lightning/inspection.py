"""Inspect a finished run: plain functions for notebooks, tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.inference import predict
from kd_lightning.core.segmentation import class_ious, mask_of, pixel_confusion
from kd_lightning.errors import UserError
from kd_lightning.metrics.confusion_matrix import confusion
from kd_lightning.metrics.map_pictures import overlays
from kd_lightning.networks import head_of
from kd_lightning.results.run_index import collect, pick
from kd_lightning.results.run_loader import (
    Finished,
    data_of,
    load_generator,
    newest_run,
    newest_sweep,
    open_run,
    real_images,
)
from kd_lightning.results.table import Table, fold
from kd_lightning.results.training_curves import Curve, curves
from kd_lightning.results.trusted import LARGEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Calibration",
    "Curve",
    "Errors",
    "Finished",
    "Neighbours",
    "answers",
    "calibration",
    "captions",
    "class_counts",
    "class_ious",
    "confident_errors",
    "confusion",
    "curves",
    "data_of",
    "feature_map",
    "features",
    "gallery",
    "generate",
    "grid",
    "interpolation",
    "latents",
    "load_generator",
    "masks",
    "nearest",
    "newest_run",
    "newest_sweep",
    "open_run",
    "overlays",
    "per_class_accuracy",
    "pixel_confusion",
    "real_images",
    "table",
]


def per_class_accuracy(counts: Tensor) -> Tensor:
    """Accuracy by true class (K,) from a confusion matrix (K, K); NaN where a class has no image."""
    return counts.diagonal() / counts.sum(1)


class Errors(NamedTuple):
    """Wrong answers, the most confident first: positions (M,), predicted classes (M,) and probabilities (M,)."""

    places: Tensor
    predicted: Tensor
    confidence: Tensor


def confident_errors(logits: Tensor, labels: Tensor, most: int = 16) -> Errors:
    """The wrong answers with the highest confidence, at most ``most``, from logits (N, K) and labels (N,)."""
    confidence, predicted = logits.float().softmax(1).max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    index = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]
    return Errors(index, predicted[index], confidence[index])


class Calibration(NamedTuple):
    """Expected calibration error, and per non-empty bin: mean confidence, accuracy, number of answers."""

    ece: float
    confidence: Tensor
    accuracy: Tensor
    number: Tensor


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """Difference of confidence and accuracy over bins of equal width (Guo et al., ICML 2017).

    Args:
        logits: (N, K).
        labels: (N,).
        bins: number of bins between 0 and 1.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open to the left
    count = torch.bincount(place, minlength=bins)
    there = count > 0
    mean_confidence = torch.bincount(place, confidence, minlength=bins)[there] / count[there]
    accuracy = torch.bincount(place, right, minlength=bins)[there] / count[there]
    ece = float((count[there] * (mean_confidence - accuracy).abs()).sum() / len(labels))
    return Calibration(ece, mean_confidence, accuracy, count[there])


@torch.no_grad()
def features(net: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Input of a network's head: (N, D) in fp32, for uint8 images (N, C, H, W)."""
    head = head_of(net)
    kept = []
    with capture(net.eval(), inputs=(head,)) as taps:
        for chunk in images.split(batch_size):
            net(chunk.float() / 255)
            kept.append(taps[head].flatten(1).float())
    return torch.cat(kept)


def feature_map(points: Tensor, *, how: str = "pca", seed: int = 0) -> np.ndarray:
    """Project features (N, D) to the plane, (N, 2).

    Args:
        points: one row per image.
        how: ``pca`` keeps distances as well as two axes can; ``tsne`` keeps neighbours together (and is slow
            beyond a few thousand points).
        seed: of the projection.

    Raises:
        UserError: an unknown ``how``, or fewer than three points.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(points) < 3:
        raise UserError(f"a map needs at least three points, got {len(points)}")
    if how == "pca":
        return PCA(2, random_state=seed).fit_transform(points.double().numpy())
    if how == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.numpy())
    raise UserError(f"there is no map {how!r}: take pca or tsne")


def latents(run: Finished, n: int, *, seed: int = 0) -> Tensor:
    """Standard normal latents (n, latent) of the length that the run's generator takes."""
    size = pick(run.cfg, "method", "generator", "latent") or pick(run.cfg, "method", "latent")
    if type(size) is not int or not 0 < size <= LARGEST:
        raise UserError(f"{run.folder}: its composition has no latent of a generator, or {size!r:.40} as its length")
    return torch.randn(n, int(size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, *, company: int = 128) -> Tensor:
    """Images (N, C, H, W), clamped to [0, 1], generated with batch statistics as the student saw them.

    Methods use the generator in training mode, where batch norm standardises over the batch, so that an image
    depends on the others. Random latents are added to ``z``, so that few or similar latents do not distort the
    statistics. The generator's state is restored afterwards.

    Args:
        generator: as :func:`load_generator` returns it.
        z: latents, (N, latent).
        company: number of random latents added to the batch.
    """
    others = torch.randn(company, z.shape[1], generator=torch.Generator().manual_seed(0))
    kept = {name: value.clone() for name, value in generator.state_dict().items()}
    was_training = generator.training
    try:
        images: Tensor = generator.train()(torch.cat([z, others]))[: len(z)]
    finally:
        generator.load_state_dict(kept)
        generator.train(was_training)
    return images.clamp(0, 1)


def interpolation(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Latents on the great circles from ``start`` to ``end``, both (N, Z): (N * steps, Z), row by row.

    Straight lines would pass near the origin, where a generator is rarely trained.
    """
    t = torch.linspace(0, 1, steps).view(1, -1, 1)
    a, b = start[:, None], end[:, None]
    angle = torch.acos(torch.cosine_similarity(a, b, dim=-1).clamp(-1 + 1e-6, 1 - 1e-6))[..., None]
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).flatten(0, 1)


class Neighbours(NamedTuple):
    """The nearest real images of each image: positions (N, k) and root mean square differences (N, k)."""

    places: Tensor
    distance: Tensor


def nearest(images: Tensor, real: Tensor, k: int = 1) -> Neighbours:
    """The real images nearest to each image in pixel space.

    Args:
        images: float in [0, 1], (N, C, H, W).
        real: uint8, (M, C, H, W).
        k: real images per image.
    """
    pixels = real.flatten(1).float() / 255
    distances = torch.cat([torch.cdist(x, pixels) for x in images.flatten(1).split(256)])
    closest = distances.topk(k, largest=False)
    return Neighbours(closest.indices, closest.values / pixels.shape[1] ** 0.5)


def class_counts(logits: Tensor) -> Tensor:
    """How often each class is predicted: int64 (K,), from logits (N, K)."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1])


def grid(images: Tensor, columns: int = 8, *, padding: int = 1) -> np.ndarray:
    """Images (N, C, H, W), float in [0, 1] or uint8, side by side on white: (H', W', 3) in [0, 1] for ``imshow``."""
    from torchvision.utils import make_grid

    shown = images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)
    return make_grid(shown, nrow=columns, padding=padding, pad_value=1.0).permute(1, 2, 0).numpy()


def gallery(images: Tensor, captions: Sequence[str] = (), *, columns: int = 8) -> Figure:
    """Images (N, C, H, W), float in [0, 1] or uint8, each with its caption, as a matplotlib figure."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, (1.4 if captions else 1.15) * rows), layout="constrained", dpi=110)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(grid(images[i : i + 1], padding=0), interpolation="nearest")
        if i < len(captions):
            axes.set_title(captions[i], fontsize=8, pad=2)
    return figure


def table(folders: Iterable[str | Path]) -> Table:
    """One row per combination of settings over all runs in and under ``folders``, as ``kd-report`` prints it."""
    return fold(collect(folders))


def answers(net: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) for images (N, C, H, W), uint8 or float in [0, 1]."""
    if images.dtype == torch.uint8:
        return predict(net, images)
    with torch.no_grad():
        return torch.cat([net.eval()(chunk).float() for chunk in images.split(500)])


def masks(net: nn.Module, images: Tensor) -> Tensor:
    """The likeliest class of every pixel, uint8 (N, H, W), for uint8 images (N, C, H, W)."""
    return predict(net, images, keep=lambda logits: mask_of(logits).to(torch.uint8))


def captions(logits: Tensor, classes: Sequence[str]) -> list[str]:
    """Captions such as ``name 0.98``: class and probability for each row of logits (N, K)."""
    confidence, label = logits.float().softmax(1).max(1)
    return [f"{classes[i]} {p:.2f}" for i, p in zip(label.tolist(), confidence.tolist(), strict=True)]
