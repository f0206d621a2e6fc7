"""Losses of classifiers and generators that learn from few labels: Triple-GAN, Bad GAN and UGAN.

Triple-GAN: Li, Xu, Zhu and Zhang (NeurIPS 2017). Bad GAN: Dai, Yang, Yang, Cohen and Salakhutdinov (NeurIPS 2017).
UGAN: Li et al. (arXiv 1910.08540). Scores u are a discriminator's logits of "a real pair of image and label". A
classifier has K logits l and a further logit "made" that is 0, so that with lse = logsumexp(l) the probability of
"real" is sigmoid(lse).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def pair_d(real: Tensor, made: Tensor, classified: Tensor, probs: Tensor | None = None) -> Tensor:
    """The discriminator's loss on pairs of Triple-GAN: E softplus(-u_r) + 1/2 E softplus(u_g) + 1/2 E softplus(u_c).

    Args:
        real: scores (N,) of real pairs.
        made: scores (M,) of generated images with their labels.
        classified: scores (B,) of images with the classifier's labels, or with ``probs`` (B, K) of all labels.
        probs: the classifier's probabilities (B, K), by which the last term is weighted (``integrate``).
    """
    of_classifier = F.softplus(classified.float())
    if probs is not None:
        of_classifier = (_same(probs, classified).float() * of_classifier).sum(1)
    return F.softplus(-real.float()).mean() + F.softplus(made.float()).mean() / 2 + of_classifier.mean() / 2


def pair_g(made: Tensor) -> Tensor:
    """1/2 E softplus(-u_g) of scores (N,), the generator's loss that goes with :func:`pair_d`."""
    return F.softplus(-made.float()).mean() / 2


def fooling(logits: Tensor, scores: Tensor) -> Tensor:
    """The classifier's loss against the pair discriminator; gradients reach ``logits`` only.

    With scores (N,) of the most likely label, ``argmax``: E max_k p_k softplus(-u), whose gradient lowers the
    confidence in pairs that the discriminator dislikes. With scores (N, K) of all labels, ``integrate``:
    E sum_k p_k softplus(-u_k).

    Args:
        logits: of the classifier, (N, K).
        scores: (N,) or (N, K).
    """
    probs, cost = logits.float().softmax(1), F.softplus(-scores.detach().float())
    if scores.dim() == 1:
        return (probs.amax(1) * _same(cost, logits[:, 0])).mean()
    return (probs * _same(cost, logits)).sum(1).mean()


def conditional_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits), in nats, for logits (N, K); at most ln K."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def class_balance(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``prior`` against the batch mean of softmax(logits), in nats.

    Args:
        logits: (N, K).
        prior: share of each class (K,); None for 1/K, where the loss is at least ln K.
    """
    log_mean = logits.float().log_softmax(1).logsumexp(0) - math.log(len(logits))
    return -log_mean.mean() if prior is None else -(prior * log_mean).sum()


def real_or_made(real: Tensor, made: Tensor) -> Tensor:
    """1/2 E softplus(-lse(l_r)) + 1/2 E softplus(lse(l_b)): images are real, and a bad generator's are not.

    Args:
        real: the classifier's logits (N, K) of real images.
        made: those of generated images, (M, K).
    """
    return (F.softplus(-real.float().logsumexp(1)).mean() + F.softplus(made.float().logsumexp(1)).mean()) / 2


def feature_matching(made: Tensor, real: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """Mean over d of the distance of two batch means, |mean f_d(made) - mean f_d(real)| or its square.

    Salimans et al. (NeurIPS 2016). Bad GAN squares it for MNIST.

    Args:
        made: features (N, D) of generated images.
        real: features (M, D) of real images.
        norm: ``l1`` or ``l2``, the square.
    """
    apart = made.float().mean(0) - real.float().mean(0)
    return apart.square().mean() if norm == "l2" else apart.abs().mean()


def pull_away(features: Tensor, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    """Mean squared cosine between the features (N, D) of different samples (Zhao, Mathieu and LeCun, ICLR 2017).

    ``code`` is what UGAN's authors compute in two of their losses: the mean cosine, not squared, over all pairs
    including each sample with itself. It is 0 for two opposite clusters, where the other is 1.
    """
    unit = F.normalize(features.float(), dim=1)
    cosine = unit @ unit.T
    if variant == "code":
        return cosine.mean()
    n = len(cosine)
    return (cosine.square().sum() - cosine.diagonal().square().sum()) / (n * (n - 1))


def manifold(logits: Tensor, moved: Tensor, *, step: float) -> Tensor:
    """E |l(G(z + step n)) - l(G(z))|^2 / step^2, |n| = 1: how fast logits change along the generator's images.

    Lecouat et al. (2018). Divided by the squared step, so that the weight does not depend on it.

    Args:
        logits: of generated images, (N, K).
        moved: of the images of latents that were moved by ``step``, (N, K).
        step: length of the move in latent space.
    """
    return (moved.float() - logits.float()).square().sum(1).mean() / step**2


def weighted_kl(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) of each sample times its weight, averaged over samples.

    Args:
        student: logits (N, K).
        teacher: logits (N, K), without gradients.
        weight: (N,), without gradients.
        temperature: T.
    """
    log_q = (student.float() / temperature).log_softmax(1)
    log_p = (_same(teacher, student).detach().float() / temperature).log_softmax(1)
    each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * (_same(weight, each).detach() * each).mean()


def _same(one: Tensor, other: Tensor) -> Tensor:
    if one.shape != other.shape:
        raise ValueError(f"expected one score or probability for each, got {tuple(one.shape)} and {tuple(other.shape)}")
    return one
