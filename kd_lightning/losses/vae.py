"""The two halves of a variational autoencoder's loss (Kingma and Welling, ICLR 2014)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, diag exp(logvar)) || N(0, I)), summed over the latent and averaged over the batch, in nats.

    Args:
        mean: (N,latent).
        logvar: the same shape.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()


def pixel_cross_entropy(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy of pixels in [0,1], **summed** over them and averaged over the batch, in nats.

    A mean over pixels would make the KL term C*H*W times too strong, and the latent would carry no information.

    Args:
        logits: of the pixels, (N,C,H,W).
        images: the same shape.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), images.float(), reduction="none")
    return each.flatten(1).sum(1).mean()


def sample_gaussian(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Mean + exp(logvar / 2) * noise: a sample that gradients pass through; all of one shape (N,latent)."""
    return mean + torch.exp(0.5 * logvar) * noise
