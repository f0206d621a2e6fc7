"""Quality of generated images and masks, measured without an Inception network.

The features come from any classifier, which is named with the number: ``FID-lenet5``. Compare such numbers only with
others of the same classifier, never with those of Inception's features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from kd_lightning.core.feature_hooks import capture
from kd_lightning.networks import head_of

CHUNK = 500
"""Images or rows per batch."""


class MaskStatistics(NamedTuple):
    """``mean`` of all pixels; their mean ``entropy`` in bits, 0 to 1; the share that is ``grey``, .05 to .95."""

    mean: float
    entropy: float
    grey: float


@torch.no_grad()
def mask_statistics(mask: Tensor) -> MaskStatistics:
    """Size and sharpness of masks (N, 1, H, W) in [0, 1]: CGN's masks of digits have .12 to .17, .05 and .05."""
    m = mask.double()
    bits = (torch.special.entr(m) + torch.special.entr(1 - m)) / torch.log(m.new_tensor(2.0))
    grey = (m > 0.05) & (m < 0.95)
    return MaskStatistics(float(m.mean()), float(bits.mean()), float(grey.double().mean()))


@torch.no_grad()
def mask_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of masks (N, 1, H, W) above .5, averaged over pairs; 1 for two empty masks."""
    if a.shape != b.shape:
        raise ValueError(f"masks are compared in pairs, got {tuple(a.shape)} and {tuple(b.shape)}")
    one, other = (mask.flatten(1) > 0.5 for mask in (a, b))
    both, any_ = (one & other).sum(1), (one | other).sum(1)
    return float(torch.where(any_ > 0, both / any_.clamp(min=1), 1.0).mean())


@torch.no_grad()
def mask_classes(net: nn.Module, mask: Tensor) -> Tensor:
    """Classes (N,) that a classifier predicts for masks (N, 1, H, W) cut at .5.

    Args:
        net: trained on clean binary shapes, images of 1 or 3 channels in [0, 1] to logits; on the masks' device.
        mask: in [0, 1].
    """
    with _evaluating(net):
        shapes = (mask > 0.5).float()
        return torch.cat([net(_seen_by(net, chunk)).argmax(1) for chunk in shapes.split(CHUNK)])


def mask_to_label(net: nn.Module, mask: Tensor, y: Tensor) -> float:
    """Share of masks (N, 1, H, W) for which a classifier of clean binary shapes predicts the requested label (N,).

    It does not depend on colours, so teacher and student are comparable. A high share is necessary, not sufficient, for
    images to train a classifier; :func:`per_class` of ``mask_classes(net, mask) == y`` shows which class is lost.
    """
    return float((mask_classes(net, mask) == y).double().mean())


def per_class(values: Tensor, y: Tensor, classes: int) -> Tensor:
    """Mean of values (N,) over the images of each class: (classes,), NaN for a class without images."""
    totals = torch.zeros(classes, device=values.device).index_add_(0, y, values.float())
    return totals / torch.bincount(y, minlength=classes)


def extractor(net: nn.Module, head: str | None = None) -> Callable[[Tensor], Tensor]:
    """A function from images (N, C, H, W) in [0, 1] to a classifier's features (N, D) on the CPU.

    One channel is repeated for a network of three; three channels are averaged for a network of one.

    Args:
        net: on the images' device; it runs in eval mode and is put back into its earlier mode.
        head: module path of the head, whose input are the features; None finds it, see :func:`head_of`.
    """
    head = head or head_of(net)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        found = []
        with _evaluating(net), capture(net, inputs=(head,)) as taps:
            for chunk in images.split(CHUNK):
                net(_seen_by(net, chunk))
                found.append(taps[head].flatten(1).float().cpu())
        return torch.cat(found)

    return features


@torch.no_grad()
def fid(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians with the means and covariances of features (N, D) and (M, D).

    ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^1/2), in fp64 (Heusel et al., NeurIPS 2017). The square root's trace
    is the sum of the singular values of R_a R_b^T, where S = R^T R, which avoids the root of a non-symmetric matrix.
    FID is biased upwards for few images, more for larger D: compare values of equally many images.

    Raises:
        ValueError: fewer than two images on a side, or features of different length.
    """
    _check_features(a, b)
    roots = []
    for x in (a, b):
        centred = x.double() - x.double().mean(0)
        roots.append(torch.linalg.qr(centred, mode="r").R / (len(x) - 1) ** 0.5)
    means = (a.double().mean(0) - b.double().mean(0)).square().sum()
    traces = torch.stack([root.square().sum() for root in roots]).sum()
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means + traces - 2 * shared).clamp(min=0))


@torch.no_grad()
def kid(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) with the kernel (x . y / D + 1)^3, over all of them.

    Binkowski et al., ICLR 2018, whose code averages over subsets of 1000 instead. It is unbiased for any number of
    images, so that it may be negative between similar sets.

    Raises:
        ValueError: fewer than two images on a side, or features of different length.
    """
    _check_features(a, b)
    a, b = a.double(), b.double()
    within = [(_kernel_sum(x, x) - _kernel(x.square().sum(1), x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(within[0] + within[1] - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel(products: Tensor, like: Tensor) -> Tensor:
    return (products / like.shape[1] + 1) ** 3


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([_kernel(chunk @ b.T, b).sum() for chunk in a.split(CHUNK)]).sum()


def _check_features(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"expected features (N, D) and (M, D) of at least two images, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


@torch.no_grad()
def inception_score(probs: Tensor, *, splits: int = 1) -> float:
    """exp(mean KL(p(y|x) || p(y))) of a classifier's probabilities (N, K), averaged over splits.

    Salimans et al., NeurIPS 2016. 1 where all rows are equal, K for one-hot rows that cover K classes evenly. For
    composed images, read it with the masks' mean: a mask of only ones or zeros shows a single mechanism, which scores
    high.
    """
    scores = []
    for p in probs.double().chunk(splits):
        entropy, entropies = torch.special.entr(p.mean(0)).sum(), torch.special.entr(p).sum(1)
        scores.append((entropy - entropies.mean()).exp())
    return float(torch.stack(scores).mean())


@torch.no_grad()
def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of images (N, C, H, W) in [0, 1], averaged over pairs; 1 for equal ones."""
    found = structural_similarity_index_measure(a.float(), b.float(), data_range=1.0)
    assert isinstance(found, Tensor)
    return float(found)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def _seen_by(net: nn.Module, x: Tensor) -> Tensor:
    wanted = next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if wanted is None:
        linear = next(m for m in net.modules() if isinstance(m, nn.Linear))
        wanted = linear.in_features // x[0, 0].numel()
    if wanted == x.shape[1]:
        return x
    if wanted == 3 and x.shape[1] == 1:
        return x.expand(-1, 3, -1, -1)
    if wanted == 1:
        return x.mean(1, keepdim=True)
    raise ValueError(f"{type(net).__name__} takes images of {wanted} channels, got {x.shape[1]}")
