"""Ratio of the densities of real and generated images given their label, from features (cDR-RS and cGAN-KD).

Deviations (paper / authors' code / here):
    * Last bias: - / PyTorch's; outputs that are all 0 get no gradient / 1, the ratio of equal densities.
    * Label: - / appended to the input of every layer as wide as the features / of the first layer only.
    * Extractor: separate / separate / inside the network, frozen, so that a weights file is a function of image and
      label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.networks.features import FeatureClassifier, SparseAutoEncoder
from kd_lightning.networks.normalized import Normalized


class RatioMlp(nn.Sequential):
    """psi: vectors (N, inputs) -> ratios (N,), not negative; the paper's MLP-5 with five widths.

    Args:
        inputs: length of the vectors.
        widths: of the hidden layers, multiples of 8 and at least 16.
        dropout: after each of them.

    Raises:
        ValueError: another width: a norm over groups of one value makes it 0.
    """

    def __init__(self, inputs: int, *, widths: Sequence[int], dropout: float = 0.5) -> None:
        if bad := [width for width in widths if width % 8 or width < 16]:
            raise ValueError(f"ratio.widths: expected multiples of 8 from 16 on, got {bad[0]}; such as [256, 128, 64]")
        layers: list[nn.Module] = []
        for a, b in zip((inputs, *widths), widths, strict=False):
            layers += [nn.Linear(a, b), nn.GroupNorm(8, b), nn.ReLU(), nn.Dropout(dropout)]
        last = nn.Linear(widths[-1], 1)
        nn.init.ones_(last.bias)
        super().__init__(*layers, last, nn.ReLU(), nn.Flatten(0))


class RatioNetwork(nn.Module):
    """r(x, y) = psi(phi(x), e(y)): images (N, C, H, W) in [0, 1] and labels (N,) -> ratios (N,).

    The extractor runs in eval mode and is not trained.

    Args:
        features: phi, a network with ``encode``; its weights include its statistics of normalisation.
        feature_dim: number of features.
        labels: e, labels to vectors: ``torch.nn.Embedding(C, C)`` for classes, a trained embedding for numbers.
        label_dim: length of these vectors.
        mean: per channel, in data units.
        std: per channel, in data units.
        widths: of psi's hidden layers.
        dropout: after each of them.
    """

    def __init__(
        self,
        *,
        features: FeatureClassifier | SparseAutoEncoder,
        feature_dim: int,
        labels: nn.Module,
        label_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (2048, 1024, 512, 256, 128),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = Normalized(features, mean=mean, std=std).requires_grad_(False)
        self.labels = labels
        self.psi = RatioMlp(feature_dim + label_dim, widths=widths, dropout=dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Ratios of images x and labels y, int64 classes or floats in [0, 1]."""
        self.features.eval()  # in every mode of this network
        encode = self.features.net.encode
        features: Tensor = encode(self.features.standardise(x))  # type: ignore[operator]
        ratios: Tensor = self.psi(torch.cat([features.flatten(1), self.labels(y)], 1))
        return ratios
