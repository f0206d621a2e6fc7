"""Images are accepted by their density ratio, exactly as many as are wanted, and never without end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import TrainingError
from kd_lightning.sources.rejection import Accepted, rejection

VALUES = torch.tensor([0.2, 0.5, 1.0, 2.0])


def values(rng: torch.Generator) -> Callable[[int], Tensor]:
    """Draws one of the four; the "images" are their own ratios."""
    return lambda n: VALUES[torch.randint(4, (n,), generator=rng)]


def sampled(n: int, *, scale: float = 1.0, seed: int = 0, **settings: int) -> Accepted:
    rng = torch.Generator().manual_seed(seed)
    settings = {"burn_in": 100, "batch_size": 64} | settings
    return rejection(values(rng), lambda x: scale * x, n, rng=rng, **settings)


def test_each_is_accepted_in_proportion_to_its_ratio() -> None:
    accepted = sampled(20000, batch_size=1000)
    share = torch.stack([(accepted.images == v).float().mean() for v in VALUES])
    torch.testing.assert_close(share, torch.tensor([0.1, 0.25, 0.5, 1.0]) / 1.85, atol=0.01, rtol=0)
    assert accepted.rate == pytest.approx(1.85 / 4, abs=0.01)
    assert accepted.most == 2.0


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_exactly_as_many_as_are_wanted(n: int) -> None:
    accepted = sampled(n)
    assert len(accepted.images) == n
    assert n <= accepted.accepted <= accepted.drawn


def test_the_scale_of_the_ratio_does_not_matter() -> None:
    assert torch.equal(sampled(300).images, sampled(300, scale=4.0).images)


def test_a_constant_ratio_accepts_everything() -> None:
    rng = torch.Generator().manual_seed(0)
    accepted = rejection(torch.zeros, lambda x: torch.full((len(x),), 0.3), 640, burn_in=1, batch_size=64, rng=rng)
    assert accepted.drawn == accepted.accepted == 640


def test_the_greatest_ratio_rises_with_what_is_seen_and_never_falls() -> None:
    """A batch of greater ratios counts before it is chosen from."""
    rng, greatest = torch.Generator().manual_seed(0), iter([1.0, 1.0, 4.0, *[2.0] * 100])
    ratios: list[Tensor] = []

    def ratio(x: Tensor) -> Tensor:
        ratios.append(torch.full((len(x),), next(greatest)))
        return ratios[-1]

    accepted = rejection(lambda n: torch.zeros(n), ratio, 700, burn_in=100, batch_size=100, rng=rng)
    assert accepted.most == 4.0
    # 100 of 1, 100 of 4, then about half of each batch of 2
    assert accepted.drawn == pytest.approx(200 + 1000, abs=150)


def test_a_burn_in_is_thrown_away() -> None:
    asked: list[int] = []

    def draw(n: int) -> Tensor:
        asked.append(n)
        return torch.full((n,), float(len(asked)))

    accepted = rejection(
        draw, lambda x: torch.ones(len(x)), 50, burn_in=150, batch_size=64, rng=torch.Generator().manual_seed(0)
    )
    assert asked == [64, 64, 22, 64]
    assert accepted.images.unique().tolist() == [4.0]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_dead_ratio_raises(value: float) -> None:
    with pytest.raises(TrainingError, match="does not tell images apart"):
        rejection(
            torch.zeros,
            lambda x: torch.full((len(x),), value),
            *(1,),
            burn_in=10,
            batch_size=10,
            rng=torch.Generator().manual_seed(0),
        )


def test_a_ratio_of_almost_nothing_comes_to_an_end() -> None:
    rng = torch.Generator().manual_seed(0)

    def ratio(x: Tensor) -> Tensor:
        found = torch.zeros(len(x))
        found[0] = 1e-9 if len(x) == 8 else 1.0
        return found

    with pytest.raises(TrainingError, match=r"accepted \d of 40 made images where 100 were wanted"):
        rejection(lambda n: torch.zeros(n), ratio, 100, burn_in=9, batch_size=8, rng=rng, max_rounds=5)
