"""Composition of an image from a shape, a foreground and a background, and the losses that keep the three apart.

Counterfactual Generative Networks (CGN; Sauer and Geiger, ICLR 2021). Images and masks are all in one range, whichever,
unless a function says which: Gram matrices depend on the range, which is [-1, 1] in CGN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MECHANISMS = ("shape", "fg", "bg")
"""The mechanisms: one draws a mask (N,1,H,W), two draw textures (N,C,H,W), all in [0, 1]."""
LOWEST, HIGHEST = 1e-4, 0.9999
"""Range to which a mask is clamped."""


def compose(mask: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """CGN's composition x = m f + (1 - m) b.

    Args:
        mask: (N,1,H,W) in [0, 1].
        foreground: (N,C,H,W).
        background: (N,C,H,W).

    Raises:
        ValueError: the mask has more than one channel, or sizes differ.
    """
    if mask.shape != (len(foreground), 1, *foreground.shape[2:]) or foreground.shape != background.shape:
        raise ValueError(
            f"mask {tuple(mask.shape)}, foreground {tuple(foreground.shape)} and background {tuple(background.shape)}: "
            "expected (N,1,H,W), (N,C,H,W) and (N,C,H,W)"
        )
    return mask * foreground + (1 - mask) * background


def binary_entropy(mask: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Mean of -p log2 p - (1-p) log2(1-p), in bits: 0 for a mask of zeros and ones, 1 where everything is 0.5.

    Args:
        mask: p in [0, 1], of any shape.
        eps: p is kept this far from 0 and 1, where the gradient is infinite.
    """
    p = mask.float().clamp(eps, 1 - eps)
    return (torch.special.entr(p) + torch.special.entr(1 - p)).mean() / math.log(2)


def mask_size(mask: Tensor, *, tau: float = 0.1) -> Tensor:
    """How far each image's share of foreground lies outside [tau, 1 - tau], averaged over the batch.

    Args:
        mask: (N,1,H,W) in [0, 1].
        tau: the smallest share that costs nothing.
    """
    share = mask.float().flatten(1).mean(1)
    return (F.relu(tau - share) + F.relu(share - (1 - tau))).mean()


def edge(mask: Tensor, *, width: int = 4) -> Tensor:
    """Share of foreground on the rim of each image, averaged over the batch: objects should not touch the rim.

    From the reproduction of CGN for the ML Reproducibility Challenge, where wildlife digits have such a term.

    Args:
        mask: (N,1,H,W) in [0, 1].
        width: of the rim in pixels, less than half of the image.
    """
    height, wide = mask.shape[2:]
    inner = mask[..., width : height - width, width : wide - width].float()
    return (mask.float().sum() - inner.sum()) / (mask.numel() - inner.numel())


def saliency(mask: Tensor) -> Tensor:
    """Mean saliency (N,1,H,W) that a saliency net finds on backgrounds: a background should show no object."""
    return mask.float().mean()


def gram(features: Tensor) -> Tensor:
    """F F^T / (C H W) of feature maps (N,C,H,W), where F is (C, H W): (N,C,C)."""
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        return flat @ flat.transpose(1, 2) / flat[0].numel()


def style(xs: Sequence[Tensor], ys: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum over levels of 5000 w^2 mean|G(x) - G(y)|, CGN's "perceptual" loss, which compares only Gram matrices.

    Args:
        xs: feature maps (N,C,H,W) of the levels.
        ys: those of the target images, of the same shapes up to H and W. No gradient reaches them.
        weights: w of each level; a level of weight 0 is skipped.

    Raises:
        ValueError: lengths differ, or every weight is 0.
    """
    if not len(xs) == len(ys) == len(weights) or not any(weights):
        raise ValueError(
            f"{len(xs)} and {len(ys)} levels with weights {list(weights)}: expected a weight for each level, at least "
            "one of them not 0"
        )
    terms = [
        5000 * w**2 * (gram(x) - gram(y.detach())).abs().mean() for x, y, w in zip(xs, ys, weights, strict=True) if w
    ]
    return torch.stack(terms).sum()


def feature_distance(xs: Sequence[Tensor], ys: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum over levels of w mean|x - y|.

    Args:
        xs: features of the levels, of any shape.
        ys: the targets, of the same shapes. No gradient reaches them.
        weights: w of each level.

    Raises:
        ValueError: lengths or shapes differ.
    """
    if not xs or not len(xs) == len(ys) == len(weights) or any(x.shape != y.shape for x, y in zip(xs, ys, strict=True)):
        raise ValueError(
            f"levels {[tuple(x.shape) for x in xs]} and {[tuple(y.shape) for y in ys]} with {len(weights)} weights: "
            "expected as many of each, of the same shapes"
        )
    terms = [w * (x.float() - y.detach().float()).abs().mean() for x, y, w in zip(xs, ys, weights, strict=True)]
    return torch.stack(terms).sum()


def windows(x: Tensor, patch: int) -> Tensor:
    """All windows of `patch` pixels in x (N,C,H,W), even sizes plus 1: a view (N,C,rows,columns,patch,patch)."""
    patch += 1 - patch % 2
    return x.unfold(2, patch, 1).unfold(3, patch, 1)


@torch.no_grad()
def patch_grid(
    x: Tensor,
    mask: Tensor,
    *,
    patch: int = 15,
    resize: int = 128,
    best: int = 100,
    grid: int = 6,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Target for a foreground's texture: windows from inside the object, laid out over a whole image.

    Of the `best` windows with the highest mean mask, grid x grid are drawn with replacement for each image. There is
    no gradient.

    Args:
        x: images (N,C,H,W).
        mask: (N,1,H,W).
        patch: side of a window, in pixels of the resized image.
        resize: side to which images and masks are resized first.
        best: number of windows to draw from; all where there are fewer.
        grid: windows per row and column.
        rng: draws the windows, on the device of `x`; None for torch's default generator.

    Returns:
        (N,C,H,W), in the range of `x` up to the overshoot of bicubic interpolation.

    Raises:
        ValueError: a window is larger than the resized image.
    """
    patch += 1 - patch % 2
    if patch > resize:
        raise ValueError(f"windows of {patch} pixels do not fit into {resize}: set patch to at most {resize - 1}")
    small, inside = (F.interpolate(a.float(), (resize, resize), mode="bicubic") for a in (x, mask))
    score = F.avg_pool2d(inside, patch, stride=1)
    columns = score.shape[3]
    deepest = score.flatten(1).topk(min(best, score[0].numel())).indices
    drawn = torch.randint(deepest.shape[1], (len(x), grid * grid), generator=rng, device=x.device)
    chosen = deepest.gather(1, drawn)
    image = torch.arange(len(x), device=x.device).unsqueeze(1)
    squares = windows(small, patch)[image, :, chosen // columns, chosen % columns]  # (N, grid^2, C, patch, patch)
    rows = squares.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
    return F.interpolate(rows.flatten(4).flatten(2, 3), x.shape[2:], mode="bicubic")
