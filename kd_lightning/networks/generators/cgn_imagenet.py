"""CGN's generator for ImageNet (Sauer and Geiger, ICLR 2021): one large generator for each of three mechanisms.

A saliency net turns the first one's images into masks; the others draw the object's texture and the background. With
BigGAN-deep for images of 256 pixels and U2-Net, it has 211,652,368 parameters, of which 167,642,499 are trained.

Deviations (paper / authors' code / here):
    * Pseudo ground truth: - / a fourth generator in the same module and file / part of the method, not kept afterwards.
    * Input of the saliency net: - / [-1, 1] / [0, 1], which ``networks.generators.u2net`` converts back.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from kd_lightning.losses.counterfactual import HIGHEST, LOWEST, MECHANISMS, compose
from kd_lightning.networks.pretrained import biggan_deep_names, u2net_names


class ImageNetCgn(nn.Module):
    """Three generators and a frozen saliency net, which stays in eval mode; gradients pass through it.

    The authors' file ``cgn.pth`` (3,206 names) is read wherever weights are.

    Args:
        f_shape: latents (N, latent) and classes (N,) to images (N, C, H, W) in [0, 1], from which the mask is computed.
        f_text: the same, to textures of the object.
        f_bg: the same, to backgrounds.
        u2net: images to saliency (N, 1, H, W) in [0, 1].
        truncation: of the latents, passed to the generators as BigGAN-deep requires; None for generators that take
            latents and classes only.
    """

    mechanisms = MECHANISMS

    @property
    def published(self) -> dict[str, str]:
        """Names in the authors' file ``cgn.pth``, and what stands for each here; ``""`` for the fourth generator."""
        parts = {part: biggan_deep_names(self.get_submodule(part)) for part in ("f_shape", "f_text", "f_bg")}
        parts["u2net"] = u2net_names(self.u2net)
        names = {f"{part}.{theirs}": f"{part}.{ours}" for part in parts for ours, theirs in parts[part].items()}
        return names | {f"biggan_GT.{theirs}": "" for theirs in parts["f_shape"].values()}

    def __init__(
        self,
        *,
        f_shape: nn.Module,
        f_text: nn.Module,
        f_bg: nn.Module,
        u2net: nn.Module,
        truncation: float | None = None,
    ) -> None:
        super().__init__()
        self.f_shape, self.f_text, self.f_bg = f_shape, f_text, f_bg
        self.u2net = u2net.eval().requires_grad_(False)
        self.truncation = truncation

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the generators; the saliency net stays in eval mode."""
        super().train(mode)
        self.u2net.eval()
        return self

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        """The mask or texture of mechanism ``im``, from latents (N, latent) and classes (N,)."""
        net = {"shape": self.f_shape, "fg": self.f_text, "bg": self.f_bg}[im]
        image = self.ask(net, z, y)
        return self.u2net(image).clamp(LOWEST, HIGHEST) if im == "shape" else image

    def latents(self, n: int, length: int, rng: torch.Generator) -> Tensor:
        """Latents (n, length) for this generator, from a truncated normal where it has a truncation."""
        if self.truncation is None:
            return torch.randn(n, length, generator=rng, device=rng.device)
        return truncated_normal(n, length, rng=rng, truncation=self.truncation)

    def ask(self, net: nn.Module, z: Tensor, y: Tensor) -> Tensor:
        """Images of a generator at this truncation."""
        return net(z, y) if self.truncation is None else net(z, y, self.truncation)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] whose mechanisms have latents and class in common."""
        return compose(*(self.draw(im, z, y) for im in MECHANISMS))


def truncated_normal(*shape: int, rng: torch.Generator, truncation: float = 1.0) -> Tensor:
    """N(0, 1) truncated at two deviations (beyond, values are redrawn), times ``truncation``, on ``rng``'s device."""
    z = torch.empty(*shape, device=rng.device)
    return nn.init.trunc_normal_(z, a=-2.0, b=2.0, generator=rng).mul_(truncation)
