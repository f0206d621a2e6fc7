"""Losses against generators whose images are all alike."""

import torch
from torch import Tensor


def mode_seeking(x: Tensor, z: Tensor, *, eps: float = 1e-5) -> Tensor:
    """1 / (mean|x2 - x1| / mean|z2 - z1| + eps), where x1, x2 and z1, z2 are the halves of the batch.

    MSGAN (Mao et al., CVPR 2019), which MSKD adds to DAFL's losses.

    Args:
        x: images (N,C,H,W) in the paper's space, N even.
        z: their latents (N,Z).
        eps: 1e-5 in MSGAN's code.
    """
    if len(x) != len(z) or len(x) % 2 or not len(x):
        raise ValueError(f"mode_seeking pairs two halves of a batch, got {len(x)} images and {len(z)} latents")
    (x1, x2), (z1, z2) = x.float().chunk(2), z.float().chunk(2)
    return 1 / ((x2 - x1).abs().mean() / (z2 - z1).abs().mean() + eps)


def teacher_ratio_diversity(x1: Tensor, x2: Tensor, p1: Tensor, p2: Tensor, *, eps: float = 1e-12) -> Tensor:
    """||p2 - p1|| / ||x2 - x1||, Frobenius norms over the whole batch: RDSKD (Han et al., ICASSP 2021), L_DS.

    Deviation: the authors' code computes 1 / (||x2 - x1|| / ||p2 - p1|| + 1e-20), the same number, but its
    gradient is NaN where all the teacher's answers are equal. `eps` is larger than 1e-20, whose square in the
    gradient would overflow fp32 for equal images.

    Args:
        x1: images (N,C,H,W) in the paper's space, standardised.
        x2: the images that `x1` is compared with.
        p1: the teacher's probabilities (N,K) for `x1`.
        p2: the teacher's probabilities for `x2`.
        eps: keeps the loss finite where all images are equal.
    """
    return torch.linalg.vector_norm(p2.float() - p1.float()) / (torch.linalg.vector_norm(x2.float() - x1.float()) + eps)
