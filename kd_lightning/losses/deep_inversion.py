"""What DeepInversion and its adaptive form (Yin et al., CVPR 2020) do to pixels.

Pixels are standardised, as the teacher's bare network sees them: ``mean`` and ``std`` (C, 1, 1) lead back to images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.image_prior import l2_norm, total_variation


def inversion_step(
    net: nn.Module,
    u: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    shift: Sequence[int],
    mirrored: bool,
    bn: float,
    tv: float,
    l2: float,
    clip: bool,
    compete: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """One step on pixels u (N, C, H, W) that are to show the classes y (N,); returns its losses.

    Args:
        net: the teacher, which has ``mean`` and ``std``.
        u: changed in place by the optimiser.
        y: class of each.
        optimizer: of u.
        shift: see :func:`jittered`.
        mirrored: likewise.
        bn: see :func:`inversion_losses`.
        tv: likewise.
        l2: likewise.
        clip: keep pixels between black and white.
        compete: a further loss of images (N, C, H, W) in [0, 1] and the teacher's logits (N, K) for them.
    """
    mean, std = cast(Tensor, net.mean), cast(Tensor, net.std)
    v = jittered(u, shift, mirrored=mirrored)
    t, losses = inversion_losses(net, v, y, bn=bn, tv=tv, l2=l2)
    if compete is not None:
        losses["compete"] = compete(v * std + mean, t)
    (u.grad,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), u)
    optimizer.step()
    if clip:
        keep_in_range(u, mean, std)
    return losses


def jittered(u: Tensor, shift: Sequence[int], *, mirrored: bool = False) -> Tensor:
    """Pixels u (N, C, H, W) moved down and right by ``shift``, what leaves coming in on the other side."""
    v = u.roll(tuple(shift), (2, 3))
    return v.flip(3) if mirrored else v


@torch.no_grad()
def keep_in_range(u: Tensor, mean: Tensor, std: Tensor) -> None:
    """Clip standardised pixels u (N, C, H, W), in place, to those of images between black and white."""
    u.copy_(u.clamp(-mean / std, (1 - mean) / std))


def inversion_losses(
    net: nn.Module, v: Tensor, y: Tensor, *, bn: float, tv: float, l2: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The teacher's logits (N, K) on standardised pixels v (N, C, H, W), and DeepInversion's losses for the classes y.

    Hooks sit on ``net`` only during its forward pass.

    Args:
        net: the teacher, which has ``mean`` and ``std``.
        v: pixels.
        y: class of each.
        bn: weight of the batch-norm statistics (alpha_f).
        tv: weight of the total variation (alpha_tv).
        l2: weight of the norm (alpha_l2).
    """
    with BatchNormTap(net) as tap:
        t = net(v * cast(Tensor, net.std) + cast(Tensor, net.mean))
    return t, {
        "class": F.cross_entropy(t.float(), y),  # L(x, y)
        "bn": bn * batch_norm_statistics(tap.statistics, tap.layers),  # alpha_f R_feature
        "prior": tv * total_variation(v) + l2 * l2_norm(v),  # R_prior = alpha_tv R_TV + alpha_l2 R_l2
    }
