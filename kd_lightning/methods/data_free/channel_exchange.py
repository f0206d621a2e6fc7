"""SpaceshipNet's exchange of channels between feature maps (Yu et al., CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


def exchange_channels(maps: Tensor, rng: torch.Generator) -> Tensor:
    """Maps (N, C, ...) of which half of the channels, other ones for each row, are those of the row opposite.

    The row opposite is the one as far from the end as the row is from the start: channel-wise feature exchange, Yu et
    al., CVPR 2023. Of an odd number of channels a row keeps the smaller half.
    """
    n, c = maps.shape[:2]
    order = torch.rand(n, c, generator=rng, device=maps.device).argsort(1).argsort(1)
    own = (order < c // 2).view(n, c, *(1 for _ in maps.shape[2:]))
    return torch.where(own, maps, maps.flip(0))
