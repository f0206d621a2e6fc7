"""CGN's classifier of digits: its size, and what of the last map it looks at."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_lightning.networks.classifiers.digits_cnn import DigitsCnn


def test_it_has_the_size_of_the_reference() -> None:
    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert count(DigitsCnn()) == 67_760
    assert count(DigitsCnn(in_channels=1)) == 67_760 - 2 * 800 - 4
    assert count(DigitsCnn(num_classes=7, pool="global")) == 67_760 - 3 * 65


@pytest.mark.parametrize("pool", ["reference", "global"])
def test_the_reference_ignores_the_last_row_and_column(pool: str) -> None:
    net = DigitsCnn(pool=pool).eval()  # type: ignore[arg-type]
    maps: list[torch.Tensor] = []
    net.features.register_forward_hook(lambda *call: maps.append(call[2]))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = net(x)
    (last,) = maps
    assert last.shape == (2, 64, 8, 8)
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), last, retain_graph=True)
    seen = gradient.abs().amax((0, 1)) > 0
    assert seen[:7, :7].all()
    assert seen[7].any() == seen[:, 7].any() == (pool == "global")
    size = 7 if pool == "reference" else 8
    torch.testing.assert_close(logits, net.head(F.avg_pool2d(last, size)[:, :, 0, 0]))


def test_of_28_pixels_both_are_the_same() -> None:
    reference, whole = DigitsCnn().eval(), DigitsCnn(pool="global").eval()
    whole.load_state_dict(reference.state_dict())
    x = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(reference(x), whole(x))


def test_what_it_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"25x25 or more, got 24x24: set student\.pool=global"):
        DigitsCnn().eval()(torch.zeros(1, 3, 24, 24))
    assert DigitsCnn(pool="global").eval()(torch.zeros(1, 3, 24, 24)).shape == (1, 10)
    assert DigitsCnn().eval()(torch.zeros(1, 3, 25, 25)).shape == (1, 10)
    with pytest.raises(ValueError, match="pool=reference or global, got max"):
        DigitsCnn(pool="max")  # type: ignore[arg-type]
