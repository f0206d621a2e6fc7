"""What makes a generated image useful to a student when nobody can look at real ones."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kd_lightning.losses.moments import mean_var

MeanVar = tuple[Tensor, Tensor]


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (N,K) against their own argmax: DAFL (Chen et al., ICCV 2019), L_oh."""
    return F.cross_entropy(logits.float(), logits.detach().argmax(1))


def information_entropy(logits: Tensor, *, log: Literal["e", "10"] = "e") -> Tensor:
    """Minus the entropy of p, the batch mean of softmax(logits), for logits (N,K): DAFL's L_ie.

    The minimum, -log K, means that the batch shows every class equally often. DAFL writes the natural
    logarithm and its code computes `log="10"`, a factor of 2.302585 that its published weight contains.
    """
    if log not in ("e", "10"):
        raise ValueError(f"unknown logarithm {log!r}: take e or 10")
    # In log space: p log p of an underflowed class is 0 with a finite gradient, where p * p.log() is NaN.
    log_p = F.log_softmax(logits.float(), dim=1).logsumexp(0) - math.log(len(logits))
    negative_entropy = (log_p.exp() * log_p).sum()
    return negative_entropy if log == "e" else negative_entropy / math.log(10)


def activation(features: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Minus the mean absolute feature: DAFL's L_a, on penultimate features (N,D).

    Args:
        features: (N,D); maps are flattened.
        reduction: DAFL's code takes the "mean" over features, its paper the "sum" (the L1 norm of each row);
            both average over the batch.
    """
    size = features.float().abs().flatten(1)
    if reduction == "mean":
        return -size.mean()
    if reduction == "sum":
        return -size.sum(1).mean()
    raise ValueError(f"unknown reduction {reduction!r}: take mean or sum")


class BatchNormTap:
    """Statistics of what enters each BatchNorm of `net`, taken while the tap is entered.

        with BatchNormTap(teacher) as tap:
            logits = teacher(images)
        loss = batch_norm_statistics(tap.statistics, tap.layers)

    The statistics keep their graph, so gradients reach the images. Another forward pass replaces them;
    entering again forgets them. Outside the `with` the net carries no hook; inside, compiled nets run as they are
    written, because a compiled one does not see its hooks.

    Raises:
        ValueError: `net` has no BatchNorm with running statistics.
    """

    def __init__(self, net: nn.Module) -> None:
        self._watched = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not self._watched:
            raise ValueError(
                f"{type(net).__name__} has no BatchNorm with running statistics, so there is nothing "
                "to match: choose a teacher with BatchNorm or a method without it"
            )
        self._seen: dict[_BatchNorm, MeanVar] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def layers(self) -> list[_BatchNorm]:
        """The BatchNorms that have run, in the order in which they ran."""
        return list(self._seen)

    @property
    def statistics(self) -> list[MeanVar]:
        """Mean and biased variance (C,) per channel, one pair for each of `layers`, in fp32."""
        return list(self._seen.values())

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("this BatchNormTap is entered already")
        self._seen.clear()
        self._handles = [layer.register_forward_pre_hook(self._keep) for layer in self._watched]
        self._as_written = torch.compiler.set_stance("force_eager")
        self._as_written.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._as_written.__exit__(kind, error, trace)
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        self._seen[layer] = mean_var(args[0].float())


def batch_norm_statistics(
    statistics: Sequence[MeanVar],
    layers: Sequence[_BatchNorm],
    *,
    ema: Sequence[MeanVar] | None = None,
    momentum: float = 0.0,
    first_layer_weight: float = 1.0,
) -> Tensor:
    """Sum over layers of ||mean - running mean|| + ||var - running var||, norms and not their squares.

    DeepInversion (Yin et al., CVPR 2020). In FastDFKD (Fang et al., AAAI 2022) the batch has to explain only
    a part of the running statistics: (1-r) mean + r ema stands in place of mean, likewise for var.

    Args:
        statistics: mean and biased variance (C,) of each BatchNorm's input, see `BatchNormTap`.
        layers: the BatchNorms, in the same order. No gradient reaches their buffers.
        ema: running averages of earlier `statistics`; None (the first round of FastDFKD) takes r = 0.
        momentum: r, in [0,1).
        first_layer_weight: factor of the first layer, 10 for ImageNet in DeepInversion's code.

    Raises:
        ValueError: no layer at all (the sum over nothing would be a silent 0) or lengths that differ.
    """
    if not layers or len(statistics) != len(layers) or (ema is not None and len(ema) != len(layers)):
        raise ValueError(
            f"need at least one BatchNorm and statistics for each: {len(statistics)} for {len(layers)} layers"
            + ("" if ema is None else f" and {len(ema)} averages")
        )
    distances = []
    for index, ((mean, var), layer) in enumerate(zip(statistics, layers, strict=True)):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        if ema is not None:
            past_mean, past_var = ema[index]
            mean = torch.lerp(mean, past_mean.detach(), momentum)
            var = torch.lerp(var, past_var.detach(), momentum)
        distance = _norm(mean - layer.running_mean.detach()) + _norm(var - layer.running_var.detach())
        distances.append(distance * first_layer_weight if index == 0 else distance)
    return torch.stack(distances).sum()


def pooled(means: Tensor, variances: Tensor) -> MeanVar:
    """Mean and biased variance (C,) of equally large batches put together, from those of each, (batches, C)."""
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def total_variation(x: Tensor, *, norm: Literal["l2", "l1"] = "l2") -> Tensor:
    """Differences between neighbours of x (N,C,H,W) in four directions: DeepInversion's R_TV.

    "l2" adds four Frobenius norms over the whole batch, as the code does, and so grows with the square root
    of N; "l1" adds four means of absolute differences.
    """
    x = x.float()
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    if norm == "l2":
        return torch.stack([_norm(d) for d in differences]).sum()
    if norm == "l1":
        return torch.stack([d.abs().mean() for d in differences]).sum()
    raise ValueError(f"unknown norm {norm!r}: take l2 or l1")


def l2_norm(x: Tensor) -> Tensor:
    """Frobenius norm of the whole batch x: DeepInversion's R_l2 (CIFAR code)."""
    return _norm(x.float())


def mode_seeking(x: Tensor, z: Tensor, *, eps: float = 1e-5) -> Tensor:
    """1 / (mean|x2 - x1| / mean|z2 - z1| + eps), pairs from the two halves of the batch.

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

    Deviation: the authors' code computes 1 / (||x2 - x1|| / ||p2 - p1|| + 1e-20), the same number, whose
        gradient is
    NaN where the teacher answers alike. 1e-20, squared in the gradient, would overflow in fp32 for equal
    images.

    Args:
        x1: images (N,C,H,W) in the paper's space, standardised.
        x2: the images that `x1` is compared with.
        p1: the teacher's probabilities (N,K) for `x1`.
        p2: the teacher's probabilities for `x2`.
        eps: keeps the loss finite where all images are equal.
    """
    return _norm(p2.float() - p1.float()) / (_norm(x2.float() - x1.float()) + eps)


class ExponentialIncrement(nn.Module):
    """Sum over terms of exp(term - anchor): what rose since its anchor weighs more, what fell less.

    RDSKD's remedy against losses that pull in opposite directions. Anchors start at 0, are buffers (a resumed
    run goes on exactly) and move to the terms' values at steps `anchor_at`, `anchor_at + anchor_every` ...

    Deviation: an increment counts at most `limit`, because exp overflows soon after; its gradient factor
        stays
    exp(limit) there, where a plain clamp would drop the term just when it is at its worst.

    Args:
        names: of the terms.
        anchor_every: steps between two moves; 120, an epoch, in the authors' code.
        anchor_at: the step of each block, from 0, *after* whose loss the anchors move; 1, the second, in the
            code.
        limit: largest increment.
    """

    anchors: Tensor

    def __init__(
        self, names: Sequence[str], *, anchor_every: int = 120, anchor_at: int = 1, limit: float = 20.0
    ) -> None:
        super().__init__()
        if not 0 <= anchor_at < anchor_every:
            raise ValueError(f"anchor_at must be one of the steps 0..{anchor_every - 1}, got {anchor_at}")
        self.names = tuple(names)
        self.anchor_every = anchor_every
        self.anchor_at = anchor_at
        self.limit = limit
        self.register_buffer("anchors", torch.zeros(len(self.names)))

    def forward(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        """The loss at `step`, counted from 0 and on through all epochs; moves the anchors when it is time."""
        if set(terms) != set(self.names):
            raise ValueError(f"expected the terms {sorted(self.names)}, got {sorted(terms)}")
        values = torch.stack([terms[name].float() for name in self.names])
        increment = values - self.anchors
        excess = (increment - self.limit).clamp(min=0).detach()
        loss = (increment - excess).exp().sum()
        if step % self.anchor_every == self.anchor_at:
            self.anchors.copy_(values.detach())
        return loss


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * term. A term of weight 0 may be absent; every term present needs a weight."""
    unweighted = sorted(set(terms) - set(weights))
    absent = sorted(name for name, weight in weights.items() if weight and name not in terms)
    if unweighted or absent or not terms:
        raise ValueError(f"terms and weights differ: no weight for {unweighted}, no term for {absent}")
    return torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()


def _norm(x: Tensor) -> Tensor:
    # vector_norm has gradient 0 at 0, sqrt of a sum has NaN.
    return torch.linalg.vector_norm(x)
