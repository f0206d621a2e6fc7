"""Losses between dense answers (N, C, H, W), for segmentation.

None of them reads labels: a void pixel counts as any other, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.response import check_same_shape


def channel_wise(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 times the KL divergence of each channel's distribution over positions, averaged over channels and images.

    CWD (Shu et al., ICCV 2021): a channel, such as a class's logits, is a softmax over its H W positions, so that the
    student imitates where each class lies and not the loud background. The authors weigh it by 3 beside cross-entropy.

    Args:
        student: logits or features (N, C, H, W).
        teacher: of the same shape. Gradients flow into it too: detach it where the method does.
        temperature: T.
    """
    s, t = (F.log_softmax(x.flatten(2) / temperature, dim=2) for x in _maps(student, teacher))
    return F.kl_div(s, t, reduction="none", log_target=True).sum(2).mean() * temperature**2


def dist_pixels(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """T^2 (inter (1 - mean correlation over pixels) + intra (1 - mean correlation over classes)).

    DIST (Huang et al., NeurIPS 2022) as its authors use it for segmentation: each pixel of the batch is a sample. The
    first correlation is that of a pixel's probabilities over the classes, the second that of a class's probabilities
    over all pixels. The authors add it with weight 1 and T=1 to cross-entropy.

    Args:
        student: logits (N, C, H, W).
        teacher: logits of the same shape.
        inter: weight of the first, beta.
        intra: weight of the second, gamma.
        temperature: T.
        eps: added to the product of lengths; a constant row has correlation 0.
    """
    p, q = (F.softmax(x / temperature, dim=1).movedim(1, -1).flatten(0, 2) for x in _maps(student, teacher))
    over_classes, over_pixels = (1 - _correlation(p, q, dim, eps).mean() for dim in (1, 0))
    return temperature**2 * (inter * over_classes + intra * over_pixels)


def paraphrase(student: Sequence[Tensor], teacher: Tensor, *, sparsity: float = 1e-7) -> Tensor:
    """Mean squared error of the map that a paraphraser gives again, plus ``sparsity`` times the L1 norm of its code.

    The loss of KTAAD's first stage (He et al., CVPR 2019), in which the student takes no part.

    Args:
        student: the map again, and the code.
        teacher: the map (N, C, H, W).
        sparsity: 1e-7 in the paper.
    """
    again, code = student
    again, teacher = _maps(again, teacher)
    return F.mse_loss(again, teacher) + sparsity * code.float().abs().sum()


def adaptation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |u_s - u_t| over all entries, u an image's map divided by its length.

    The first loss of KTAAD (He et al., CVPR 2019), between the student's map, adapted to the code's channels, and the
    code that a paraphraser makes of the teacher's map; weight 50.

    Args:
        student: (N, C, H, W).
        teacher: of the same shape.
    """
    s, t = (F.normalize(x.flatten(1), dim=1) for x in _maps(student, teacher))
    return F.l1_loss(s, t)


def affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images of sum_c ||a a^T (student) - a a^T (teacher)||_F / (H W), a the channel's map of length 1.

    The second loss of KTAAD: which positions of a channel go together; weight 1. For unit vectors that Frobenius norm
    is |a - b| |a + b| / sqrt 2, so no matrix of (H W)^2 entries is made.

    Args:
        student: (N, C, H, W).
        teacher: of the same shape.
    """
    a, b = (F.normalize(x.flatten(2), dim=2) for x in _maps(student, teacher))
    norms = torch.linalg.vector_norm(a - b, dim=2) * torch.linalg.vector_norm(a + b, dim=2) / math.sqrt(2)
    return norms.sum(1).mean() / a.shape[2]


def _maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32.

    Raises:
        ValueError: they are no maps (N, C, H, W), or differ in shape.
    """
    check_same_shape(student, teacher)
    if student.dim() != 4:
        raise ValueError(f"a loss on maps needs (N, C, H, W), got {tuple(student.shape)}: choose a loss for classes")
    return student.float(), teacher.float()


def _correlation(p: Tensor, q: Tensor, dim: int, eps: float) -> Tensor:
    """Pearson's correlation along ``dim``."""
    p, q = (x - x.mean(dim, keepdim=True) for x in (p, q))
    lengths = torch.linalg.vector_norm(p, dim=dim) * torch.linalg.vector_norm(q, dim=dim)
    return (p * q).sum(dim) / (lengths + eps)
