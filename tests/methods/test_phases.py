"""Helpers for rounds in phases."""

from __future__ import annotations

import copy

import pytest
import torch
from test_rounds import state
from torch import nn

from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.phases import redraw, restart
from kd_lightning.methods.base.statistics import BatchNormMixture


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_frozen_network_lets_gradients_through_and_keeps_none() -> None:
    frozen_net, x = net(), torch.randn(5, 3, requires_grad=True)
    frozen_net[0].bias.requires_grad_(False)
    before = state(frozen_net)
    with frozen(frozen_net, in_eval=True):
        assert not frozen_net.training
        frozen_net(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in frozen_net.parameters())
    assert state(frozen_net) == before  # its batch norm, too
    assert frozen_net.training
    assert [p.requires_grad for p in frozen_net.parameters()] == [True, False, True, True, True, True]


def test_without_evaluation_mode_batch_norms_move_and_an_error_undoes_it_all() -> None:
    frozen_net = net()
    x = torch.randn(5, 3)
    with frozen(frozen_net):
        frozen_net(x)
    with pytest.raises(RuntimeError), frozen(frozen_net):
        frozen_net(x.T)
    assert frozen_net[1].num_batches_tracked == 1
    assert all(p.requires_grad for p in frozen_net.parameters())


def test_a_restarted_optimiser_steps_as_a_new_one() -> None:
    old, new = net(), None
    opt = torch.optim.Adam(old.parameters(), lr=0.1)
    for _ in range(3):
        old(torch.randn(5, 3)).square().sum().backward()
        opt.step()
        opt.zero_grad()
    new = copy.deepcopy(old)
    restart(opt)
    x = torch.randn(5, 3)
    for each, by in ((old, opt), (new, torch.optim.Adam(new.parameters(), lr=0.1))):
        each(x).square().sum().backward()
        by.step()
    assert state(old) == state(new)


def test_a_redrawn_network_is_as_new_and_the_same_from_the_same_noise() -> None:
    one, other = net(), net()
    one(torch.randn(5, 3))
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    for each in (one, other):
        redraw(each, torch.Generator().manual_seed(7))
    assert torch.equal(torch.randn(2), expected)  # nobody else's noise was touched
    assert state(one) == state(other)
    assert one[1].num_batches_tracked == 0
    first = one[0].weight.clone()
    redraw(one, torch.Generator().manual_seed(8))
    assert not torch.equal(one[0].weight, first)


def test_a_mixture_of_statistics_is_a_moving_average() -> None:
    mixture = BatchNormMixture(0.75)
    batches = [[(torch.full((2,), float(n)), torch.full((2,), 2.0 * n))] for n in (1, 2, 3)]
    for batch in batches:
        mixture.update(batch)
    # ((1 * .75 + 2 * .25) * .75 + 3 * .25)
    assert mixture.average is not None
    mean, var = mixture.average[0]
    assert mean.tolist() == [1.6875, 1.6875]
    assert var.tolist() == [3.375, 3.375]
    again = BatchNormMixture(0.75)
    again.load(mixture.average, "cpu")
    assert again.average is not None
    assert torch.equal(again.average[0][0], mean)
    again.load(None, "cpu")
    assert again.average is None
