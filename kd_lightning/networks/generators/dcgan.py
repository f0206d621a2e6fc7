"""The generator of DFAD for larger images, after DCGAN (Radford et al., ICLR 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.errors import SizeError


class GeneratorB(nn.Module):
    """Latent (N, latent) -> image (N, channels, H, W) in [0, 1]; "generator B" of DFAD's code.

    Four transposed convolutions double the map, each followed by BatchNorm and LeakyReLU, then a 3x3 convolution and
    tanh. DFAD feeds tanh's output to teachers that normalise with mean 0.5 and deviation 0.5; here it is moved to data
    units, and networks normalise it themselves. For segmentation the image is about half as high as a test image.

    Args:
        latent: length of z.
        channels: channels of the image.
        size: height and width of the image, or one number for both; multiples of 16.
        ngf: channels of the last two maps; the first has eight times as many.
        slope: of LeakyReLU.

    Raises:
        ValueError: a height or width that is not a multiple of 16.
    """

    def __init__(
        self,
        *,
        latent: int = 256,
        channels: int = 3,
        size: int | Sequence[int] = 128,
        ngf: int = 64,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        if height < 16 or width < 16 or height % 16 or width % 16:
            raise SizeError(f"GeneratorB doubles its map four times: size must be multiples of 16, got {size}")
        self.latent = latent
        self.shape = (8 * ngf, height // 16, width // 16)
        self.project = nn.Linear(latent, self.shape[0] * self.shape[1] * self.shape[2])
        layers: list[nn.Module] = [nn.BatchNorm2d(8 * ngf)]
        for inputs, outputs in ((8, 4), (4, 2), (2, 1), (1, 1)):
            layers.append(nn.ConvTranspose2d(inputs * ngf, outputs * ngf, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(outputs * ngf), nn.LeakyReLU(slope)]
        self.body = nn.Sequential(*layers, nn.Conv2d(ngf, channels, 3, padding=1), nn.Tanh())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, channels, H, W) from latents z (N, latent), standard normal in the paper."""
        u: Tensor = self.body(self.project(z).unflatten(1, self.shape))
        return (u + 1) / 2
