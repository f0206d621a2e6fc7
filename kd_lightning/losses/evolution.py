"""What an evolutionary GAN selects by, and what its crossover imitates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def quality(scores: Tensor) -> Tensor:
    """F_q of E-GAN (Wang et al., IEEE TEVC 2019): the mean of sigmoid(D(fake)), in (0, 1).

    Args:
        scores: logits of generated images, of any shape.
    """
    return scores.float().sigmoid().mean()


def diversity(loss: Tensor, parameters: Iterable[nn.Parameter], *, eps: float = 1e-12) -> Tensor:
    """F_d of E-GAN: -log of the norm of the gradient of the discriminator's loss, over all its parameters together.

    A discriminator that has little to learn from a generator's images sees them spread over the real ones. A factor c
    on the loss adds -log c.

    Args:
        loss: of the discriminator, on real and on generated images.
        parameters: of the discriminator; those that require no gradients do not count.
        eps: added to the norm, which is 0 where the discriminator learns nothing.
    """
    learning = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    squares = [g.float().square().sum() for g in gradients if g is not None]
    return -(torch.stack(squares).sum().sqrt() + eps).log()


def best_of_each(outputs: Tensor, scores: Tensor) -> Tensor:
    """For every sample the output of the network that does best on it: (N, ...).

    The Q-filter of CE-GAN (Li et al., IJCNN 2021), whose crossover distils two generators; of equal scores the later
    network's counts. Any networks with a score per sample can be distilled into one this way.

    Args:
        outputs: of M networks for the same N inputs, (M, N, ...).
        scores: (M, N), the higher the better.

    Raises:
        ValueError: the shapes do not go together.
    """
    if outputs.shape[:2] != scores.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} need one score each, got scores {tuple(scores.shape)}")
    best = len(scores) - 1 - scores.flip(0).argmax(0)
    return outputs[best, torch.arange(outputs.shape[1], device=outputs.device)]
