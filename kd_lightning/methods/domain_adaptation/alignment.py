"""Passes of a network over both domains, and the loss that makes it fit the one without labels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kd_lightning.core.feature_hooks import capture
from kd_lightning.losses.domains import domain_cross_entropy, mmd, reverse_gradient
from kd_lightning.networks import head_of

Kind = Literal["mmd", "grl"]
Passes = Literal["separate", "concat"]


class Seen(NamedTuple):
    """What a network made of both domains: logits (N, K) and features (N, D) of the source, then of the target."""

    source: Tensor
    target: Tensor
    source_features: Tensor
    target_features: Tensor


def both(net: nn.Module, source: Tensor, target: Tensor, passes: Passes = "separate") -> Seen:
    """Run images of both domains through a network; features are what enters its head.

    Args:
        net: images (N, C, H, W) to logits (N, K).
        source: images with labels.
        target: images without.
        passes: ``separate``: each domain is normalised by its own statistics in a batch norm that is in training, and
            the running statistics, which are used afterwards, are a mixture; ``concat``: one pass over both.
    """
    head = head_of(net)
    with capture(net, inputs=(head,)) as taps:
        if passes == "concat":
            together = net(torch.cat([source, target]))
            features = taps[head].flatten(1)
            return Seen(*together.split([len(source), len(target)]), *features.split([len(source), len(target)]))
        logits = net(source)
        features = taps[head].flatten(1)
        return Seen(logits, net(target), features, taps[head].flatten(1))


class DomainDiscriminator(nn.Sequential):
    """Features (N, D) to a logit (N, 1), high for the source.

    It has no batch norm: over a batch of one domain that would take away the mean, by which domains differ.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def discriminator_of(net: nn.Module, hidden: int) -> DomainDiscriminator:
    """A fresh discriminator of a network's features."""
    layers = net.get_submodule(head_of(net)).modules()
    return DomainDiscriminator(next(m.in_features for m in layers if isinstance(m, nn.Linear)), hidden)


def aligned(seen: Seen, weight: float, discriminator: nn.Module | None, gathered: Any) -> dict[str, Tensor]:
    """The term of L_TDA that makes the features of both domains alike.

    Args:
        seen: of the network that is adapted.
        weight: gamma, of the MMD; or delta, by which the discriminator's gradient is multiplied as it is reversed.
        discriminator: of the domains, which learns from the unreversed gradient; None for the MMD.
        gathered: collects the rows of all ranks: the MMD is no mean over samples.
    """
    features = seen.source_features, seen.target_features
    if discriminator is None:
        return {"mmd": weight * mmd(*map(gathered, features))}
    source, target = (discriminator(reverse_gradient(each, weight)) for each in features)
    return {"domain": domain_cross_entropy(source, target)}
