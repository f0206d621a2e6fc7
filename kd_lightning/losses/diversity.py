"""Losses against generators whose images are all alike."""

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
