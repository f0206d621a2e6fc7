"""Feature extractors for density ratios, of cGAN-KD (Ding et al., ESWA 2023).

Both are trained on real images to predict their labels, as a fit's student; ``encode`` gives the features. With the
papers' settings the first has 26.3 million parameters (CIFAR-100); the sparse auto-encoder has as many features as an
image has values.

Deviations (paper / authors' code / here):
    * Input: - / statistics of the data while training, [-1, 1] afterwards / statistics of the data, always.
    * Last bias of the regression branch: - / PyTorch's / 0.5, so that its ReLU is not dead on every image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.networks.generators.gan_blocks import doublings
from kd_lightning.networks.label_embedding import ConvTrunk, ResNetTrunk


class FeatureClassifier(nn.Module):
    """Images (N, C, H, W), normalised -> logits (N, num_classes), through features (N, features).

    Args:
        trunk: images to vectors of ``trunk.features`` values.
        num_classes: logits.
        features: values of the feature vector.
        hidden: widths between it and the logits.
        dropout: before each of the last layers.
    """

    def __init__(
        self,
        trunk: ResNetTrunk | ConvTrunk,
        *,
        num_classes: int,
        features: int = 3072,
        hidden: Sequence[int] = (1024, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.trunk, self.widen = trunk, nn.Linear(trunk.features, features)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((features, *hidden), (*hidden, num_classes), strict=True):
            layers += [nn.BatchNorm1d(inputs), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inputs, outputs)]
        self.head = nn.Sequential(*layers)

    def encode(self, x: Tensor) -> Tensor:
        """Features (N, features)."""
        features: Tensor = self.widen(self.trunk(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.head(self.encode(x))
        return logits


class SparseAutoEncoder(nn.Module):
    """Images (N, channels, size, size), normalised -> the place of their number in its range, (N, 1), not negative.

    The encoder halves the image down to 4x4, by one 4x4 convolution of stride 2 and one 3x3 convolution at a time, and
    ends in non-negative features; the decoder mirrors it and ends in tanh; a branch predicts the number.

    Args:
        channels: of the image.
        size: height and width, 4 times a power of 2.
        width: channels of the first maps; the last have four times as many.
        features: values of the feature vector.
        hidden: widths of the branch from features to the number.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        size: int = 64,
        width: int = 64,
        features: int = 12288,
        hidden: Sequence[int] = (1024, 512, 256),
    ) -> None:
        super().__init__()
        halvings = doublings(size, 4, of="the sparse auto-encoder")
        layers: list[nn.Module] = []
        inputs = channels
        for i in range(halvings):
            kept, grown = (width, width) if i == 0 else (inputs, width * min(4, 2**i))
            layers += [nn.Conv2d(inputs, kept, 4, 2, 1), nn.BatchNorm2d(kept), nn.ReLU()]
            layers += [nn.Conv2d(kept, grown, 3, 1, 1), nn.BatchNorm2d(grown), nn.ReLU()]
            inputs = grown
        flat = inputs * 16
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, features), nn.ReLU())
        layers = [nn.Linear(features, flat), nn.BatchNorm1d(flat), nn.ReLU(), nn.Unflatten(1, (-1, 4, 4))]
        for _ in range(halvings):
            shrunk = max(width, inputs // 2)
            layers += [nn.ConvTranspose2d(inputs, inputs, 4, 2, 1), nn.BatchNorm2d(inputs), nn.ReLU()]
            layers += [nn.Conv2d(inputs, shrunk, 3, 1, 1), nn.BatchNorm2d(shrunk), nn.ReLU()]
            inputs = shrunk
        self.decoder = nn.Sequential(*layers, nn.Conv2d(width, channels, 1), nn.Tanh())
        layers = []
        for a, b in zip((features, *hidden), hidden, strict=False):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
        last = nn.Linear(hidden[-1], 1)
        nn.init.constant_(last.bias, 0.5)
        self.head = nn.Sequential(*layers, last, nn.ReLU())

    def encode(self, x: Tensor) -> Tensor:
        """Features (N, features), not negative."""
        features: Tensor = self.encoder(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """The number's place, (N, 1)."""
        place: Tensor = self.head(self.encode(x))
        return place
