"""Encoders and decoders of FS-BBT's CVAE: the papers' sizes, images in [0, 1], and the label tells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from kd_lightning.networks.generators.cvae import ConvDecoder, ConvEncoder, Decoder, Encoder, MlpDecoder, MlpEncoder

MLP = {"size": 28, "channels": 1}
CONV = {"size": 32, "channels": 3}


def parameters(*nets: nn.Module) -> int:
    return sum(p.numel() for net in nets for p in net.parameters())


def linears(*widths: int) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def test_the_mlp_has_the_authors_size() -> None:
    encoder = linears(784 + 10, 256, 128, 64) + 2 * linears(64, 2)
    decoder = linears(2 + 10, 64, 128, 256, 784)
    assert parameters(MlpEncoder(**MLP), MlpDecoder(**MLP)) == encoder + decoder == 488_596


def test_the_convolutional_one_has_their_layers_and_ends_at_32x32() -> None:
    widths = (32, 64, 128, 256, 512)
    down = sum((16 * a + 1) * b for a, b in zip((4, *widths), widths, strict=False))
    encoder = linears(10, 32 * 32) + down + linears(512, 32, 16) + 2 * linears(16, 2)
    up = sum((16 * a + 0) * b + b for a, b in zip((512, 256, 128, 64, 32), (256, 128, 64, 32, 3), strict=True))
    assert parameters(ConvEncoder(**CONV)) == encoder
    assert parameters(ConvDecoder(**CONV)) == linears(2 + 10, 16, 32, 512) + up
    with pytest.raises(ValueError, match="a multiple of 32"):
        ConvDecoder(size=28)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (partial(MlpEncoder, **MLP), partial(MlpDecoder, **MLP)),
        (partial(MlpEncoder, size=8, widths=(16, 8)), partial(MlpDecoder, size=8, widths=(16, 8))),
        (partial(ConvEncoder, **CONV), partial(ConvDecoder, **CONV)),
        (partial(ConvEncoder, size=64), partial(ConvDecoder, size=64)),
    ],
    ids=["mlp", "mlp of 8 pixels", "conv", "conv of 64 pixels"],
)
def test_images_are_in_the_unit_range_and_follow_their_label(
    encoder: Callable[[], Encoder], decoder: Callable[[], Decoder]
) -> None:
    torch.manual_seed(0)
    encoder, decoder = encoder(), decoder()
    z, label = 3 * torch.randn(6, 2), torch.tensor([0, 1, 2, 7, 8, 9])
    x = decoder(z, label)
    assert 0 <= x.min() <= x.max() <= 1
    torch.testing.assert_close(x, decoder.logits(z, label).sigmoid())
    other = decoder(z, label.flip(0))
    assert (x - other).flatten(1).abs().amax(1).min() > 1e-6
    mean, logvar = encoder(x, label)
    assert mean.shape == logvar.shape == (6, 2)
    assert not torch.equal(mean, logvar)
    assert not torch.allclose(encoder(x, label.flip(0))[0], mean)
