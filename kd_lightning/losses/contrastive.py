"""Contrastive losses: which of many rows belong together."""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(query: Tensor, key: Tensor, *, temperature: float = 0.1, fresh: int | None = None) -> Tensor:
    """Cross-entropy of each query against all keys; the key in its own row is the right one.

    CMI (Fang et al., IJCAI 2021) contrasts the current batch with rows kept from earlier batches: the means over
    the first ``fresh`` rows and over the rest are added, so that the batch's share does not shrink as the rest grows.

    Args:
        query: (N, D) of unit length.
        key: (N, D) of unit length. No gradient reaches it.
        temperature: tau.
        fresh: number of rows of the current batch, which come first; None for all.
    """
    if query.shape != key.shape:
        raise ValueError(f"each query needs its key, got {tuple(query.shape)} and {tuple(key.shape)}")
    logits = query.float() @ key.detach().float().T / temperature
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    parts = losses.split([len(losses)] if fresh is None else [fresh, len(losses) - fresh])
    return torch.stack([part.mean() for part in parts if len(part)]).sum()
