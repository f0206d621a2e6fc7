"""The diversity of a generator's images as a teacher sees it."""

import torch
from torch import Tensor


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
