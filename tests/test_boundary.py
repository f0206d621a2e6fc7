"""Walks whose ends are known in closed form, and boundaries whose likeness is."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, tiny_run
from omegaconf import OmegaConf
from torch import Tensor, nn

from kd_lightning.cli.boundary import main
from kd_lightning.config.check import faults
from kd_lightning.data.dataset import Split
from kd_lightning.errors import UserError
from kd_lightning.losses.boundary_walk import CROSSED, STEPS, THIRD, boundary_walk
from kd_lightning.metrics.boundary import Boundary, compare
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.run_loader import load_teacher, open_run

ETA, EPS = 0.3, 1e-4
SHAPE = (1, 4, 4)
STATISTICS = {"mean": [0.5], "std": [0.25]}


class Linear(nn.Module):
    """Logits w_k . x + c_k, computed in float64, for images of any shape."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ self.weight.T + self.bias).to(x.dtype)


def two_classes(w: Tensor, c: float = 0.0) -> Linear:
    """f_0 - f_1 = w . x + c."""
    return Linear(torch.stack([w, torch.zeros_like(w)]), torch.tensor([c, 0.0], dtype=torch.float64))


def direction(seed: int) -> Tensor:
    w = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return w / w.norm()


def at_margin(net: Linear, margins: Tensor, seed: int) -> Tensor:
    """Random images (N, 1, 4, 4) with these margins, not confined to any box."""
    w, c = net.weight[0].detach(), net.bias[0].detach()
    x = torch.randn(len(margins), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (x + ((margins - c - x @ w) / (w @ w))[:, None] * w).view(-1, *SHAPE)


def walk(net: nn.Module, x: Tensor, **settings: Any) -> Any:
    base, target = torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=torch.long)
    return boundary_walk(net, x, base, target, **{"eta": ETA, "eps": EPS, "box": None} | settings)


def steps_to_cross(norm: float, margin: float) -> int:
    r = 1 - ETA * norm
    return 1 if r <= 0 else math.floor(math.log(EPS / (margin + EPS)) / math.log(r)) + 1


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0, 2.5, 3.2])
def test_a_linear_teacher_is_crossed_after_the_steps_of_the_closed_form(norm: float) -> None:
    """500 random points over the five norms."""
    net = two_classes(norm * direction(0), 0.7)
    margins = 0.1 + 5 * torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = at_margin(net, margins, 2)
    end = walk(net, x, max_steps=60)
    assert end.steps.tolist() == [steps_to_cross(norm, m) for m in margins.tolist()]
    assert end.ok.all()
    moved = (end.x - x).flatten(1)
    last = end.scores[:, 0] - end.scores[:, 1]
    torch.testing.assert_close(moved.norm(dim=1), (margins - last) / norm, rtol=0, atol=1e-12)
    torch.testing.assert_close(-moved / moved.norm(dim=1, keepdim=True), direction(0).expand(100, -1))
    assert ((last > -EPS) & (last < 0)).all()
    torch.testing.assert_close(last + EPS, (margins + EPS) * (1 - ETA * norm) ** end.steps.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("norm", "margin", "steps"),
    [(1, 1, 26), (1.5, 1, 16), (2, 1, 11), (2, 5, 12), (2.5, 1, 7), (2.5, 5, 8), (3.2, 1, 3), (3.2, 5, 4), (3.4, 5, 1)],
)
def test_the_specified_numbers_of_steps(norm: float, margin: float, steps: int) -> None:
    net = two_classes(norm * direction(0))
    end = walk(net, at_margin(net, torch.tensor([margin], dtype=torch.float64), 0), max_steps=60)
    assert end.steps.tolist() == [steps]


def test_ten_steps_need_not_suffice() -> None:
    net = two_classes(direction(0))
    end = walk(net, at_margin(net, torch.ones(1, dtype=torch.float64), 0))
    assert float(end.scores[0, 0] - end.scores[0, 1]) == pytest.approx(0.02815, abs=1e-5)
    assert (end.reason.tolist(), end.steps.tolist()) == ([STEPS], [10])


def test_without_eps_it_never_crosses() -> None:
    net = two_classes(2.0 * direction(0))
    x = at_margin(net, torch.ones(1, dtype=torch.float64), 0)
    assert walk(net, x, eps=0.0, max_steps=30).reason.tolist() == [STEPS]
    assert walk(net, x, max_steps=30).ok.all()


def test_what_is_already_across_stays() -> None:
    net = two_classes(direction(0))
    x = at_margin(net, torch.tensor([-0.5, 0.02], dtype=torch.float64), 0)
    end = walk(net, x)
    assert torch.equal(end.x[0], x[0])
    assert end.steps.tolist()[0] == 0
    assert not torch.equal(end.x[1], x[1])
    both_across = walk(net, x[:1])
    assert torch.equal(both_across.x, x[:1])


def test_a_third_class_in_the_way() -> None:
    # going from class 0 to class 1 along the first pixel, class 2 is above both between 0.2 and 0.8
    weight = torch.zeros(3, 16, dtype=torch.float64)
    weight[0, 0], weight[1, 0] = 1.0, -1.0
    net = Linear(weight, torch.tensor([0.0, 1.0, 0.6], dtype=torch.float64))
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    x[0, 0, 0, 0] = 1.0
    end = walk(net, x, max_steps=50)
    assert (end.reason.tolist(), end.ok.tolist()) == ([THIRD], [False])
    net.bias.data[2] = -9.0
    assert walk(net, x, max_steps=50).reason.tolist() == [CROSSED]


def test_a_flat_teacher_leads_nowhere() -> None:
    net = Linear(torch.zeros(2, 16, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    end = walk(net, x)
    assert torch.equal(end.x, x)
    assert (end.reason == STEPS).all()


def test_a_step_is_measured_in_normalised_units() -> None:
    mean, std = torch.tensor([0.5, 0.4]).view(2, 1, 1), torch.tensor([0.1, 0.4]).view(2, 1, 1)
    net = Normalized(SmallConvNet(num_classes=2, in_channels=2, widths=(8,)), mean=[0.5, 0.4], std=[0.1, 0.4]).double()
    mean, std = mean.double(), std.double()
    x = torch.rand(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = net(x).argmax(1)
    ours = boundary_walk(net, x, base, 1 - base, std=net.std, max_steps=4, box=None)
    theirs = boundary_walk(net.net, (x - net.mean) / net.std, base, 1 - base, max_steps=4, box=None)
    torch.testing.assert_close((ours.x - net.mean) / net.std, theirs.x)
    torch.testing.assert_close(ours.scores, theirs.scores)
    plain = boundary_walk(net, x, base, 1 - base, max_steps=4, box=None)
    assert not torch.allclose(plain.x, ours.x)


def bumpy() -> Normalized:
    """Untrained, but with boundaries within a few steps of random pixels."""
    hidden, head = nn.Linear(64, 32), nn.Linear(32, 4)
    head.weight.data.mul_(6)
    return Normalized(nn.Sequential(nn.Flatten(), hidden, nn.BatchNorm1d(32), nn.Tanh(), head), **STATISTICS).eval()


@pytest.fixture
def nets() -> tuple[Normalized, Normalized]:
    torch.manual_seed(0)
    one = bumpy()
    other = copy.deepcopy(one)
    for parameter in other.parameters():
        parameter.data += 0.2 * parameter.std() * torch.randn_like(parameter)
    return one, other


@pytest.fixture
def split() -> Split:
    images = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Split(images, torch.zeros(60, dtype=torch.long))


def labelled_by(net: nn.Module, split: Split) -> Split:
    with torch.no_grad():
        return Split(split.images, net.eval()(split.images.float() / 255).argmax(1))


def walk_anywhere(net: Normalized, x: Tensor, **settings: Any) -> Any:
    with torch.no_grad():
        base = net(x).argmax(1)
    return boundary_walk(net, x, base, (base + 1) % 4, std=net.std, **settings)


def test_pixels_stay_in_the_box(nets: tuple[Normalized, Normalized], split: Split) -> None:
    x = split.images.float() / 255
    end = walk_anywhere(nets[0], x, eta=5.0)
    assert not torch.equal(end.x, x)
    assert end.x.min() == 0
    assert end.x.max() == 1


def test_the_network_and_the_random_numbers_are_left_alone(nets: tuple[Normalized, Normalized], split: Split) -> None:
    net, x = nets[0], split.images.float() / 255
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    end = walk_anywhere(net, x)
    assert end.steps.sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not end.x.requires_grad
    assert not end.scores.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(end.scores, net(end.x), rtol=1e-4, atol=1e-4)


def test_a_batch_walks_as_its_parts_do(nets: tuple[Normalized, Normalized], split: Split) -> None:
    x = split.images.float() / 255
    together = walk_anywhere(nets[0], x)
    apart = [walk_anywhere(nets[0], part) for part in x.split(7)]
    x, reason, steps = (torch.cat([getattr(w, name) for w in apart]) for name in ("x", "reason", "steps"))
    same = (together.steps == steps) & (together.reason == reason)
    assert same.float().mean() > 0.9, "rounding may end a walk a step sooner"
    torch.testing.assert_close(together.x[same], x[same], rtol=0, atol=1e-4)
    assert len(set(together.reason.tolist())) > 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_walks_where_gradients_are_off(nets: tuple[Normalized, Normalized], split: Split, mode: Any) -> None:
    usual = walk_anywhere(nets[0], split.images.float() / 255)
    with mode():
        assert torch.equal(usual.x, walk_anywhere(nets[0], split.images.float() / 255).x)


def test_it_walks_in_full_precision(nets: tuple[Normalized, Normalized], split: Split) -> None:
    usual = walk_anywhere(nets[0], split.images.float() / 255)
    with torch.autocast("cpu", torch.bfloat16):
        walked = walk_anywhere(nets[0], split.images.float() / 255)
    same = usual.steps == walked.steps  # a base class may differ in bf16
    assert same.float().mean() > 0.9
    assert walked.scores.dtype == torch.float32


def test_probabilities_as_scores(nets: tuple[Normalized, Normalized], split: Split) -> None:
    x = split.images.float() / 255
    logits, probs = walk_anywhere(nets[0], x, max_steps=1), walk_anywhere(nets[0], x, max_steps=1, score="probs")
    length = [((w.x - x) / nets[0].std).flatten(1).norm(dim=1).max() for w in (logits, probs)]
    assert length[1] <= ETA * (1 + EPS)
    assert length[1] < length[0]


# how alike two boundaries are


def test_a_network_is_exactly_like_itself(nets: tuple[Normalized, Normalized], split: Split) -> None:
    own = labelled_by(nets[0], split)
    pairs = compare(nets[0], nets[0], own, std=0.25)
    found = pairs.within(10)
    assert found.magsim == pytest.approx(1, abs=1e-6)
    assert found.angsim == pytest.approx(1, abs=1e-6)
    assert 0 < found.valid_fraction <= 1
    assert len(pairs.valid) == 60 * 3


def test_likeness_is_symmetric_and_bounded(nets: tuple[Normalized, Normalized], split: Split) -> None:
    own = labelled_by(nets[0], split)
    one, other = (compare(a, b, own, std=0.25).within(10) for a, b in (nets, nets[::-1]))
    assert tuple(one) == pytest.approx(tuple(other), abs=1e-9)
    assert 0 < one.magsim < 1
    assert -1 < one.angsim < 1


def linear_pair(w1: Tensor, c1: float, w2: Tensor, c2: float, **settings: Any) -> tuple[Any, Tensor]:
    """Pairs of w . (x - 1/2) + c over random images that both put in class 0, and these x - 1/2."""
    images = torch.randint(256, (400, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nets = [two_classes(w, c - float(w.sum()) / 2) for w, c in ((w1, c1), (w2, c2))]
    split = Split(images, torch.zeros(400, dtype=torch.long))
    with torch.no_grad():
        right = torch.stack([net(images.float() / 255).argmax(1) == 0 for net in nets]).all(0)
    settings = {"images": None, "box": None, "max_steps": 200} | settings
    return compare(*nets, split, **settings), (images[right].double() / 255 - 0.5).flatten(1)


def test_two_linear_boundaries() -> None:
    w1, w2 = 2 * direction(1), 1.5 * direction(2)
    pairs, x = linear_pair(w1, 0.3, w2, 0.2)
    assert pairs.images == len(x) > 50
    assert pairs.valid.all()
    found = pairs.within(200)
    assert found.angsim == pytest.approx(float(direction(1) @ direction(2)), abs=1e-4)
    distance = torch.stack([(x @ w1 + 0.3) / w1.norm(), (x @ w2 + 0.2) / w2.norm()])
    assert found.magsim == pytest.approx(float((distance.min(0).values / distance.max(0).values).mean()), abs=2e-3)


def test_orthogonal_boundaries() -> None:
    w1 = direction(1)
    w2 = direction(2) - (direction(2) @ w1) * w1
    assert linear_pair(2 * w1, 0.5, 2 * w2, 0.5)[0].within(200).angsim == pytest.approx(0, abs=1e-4)


def test_scaled_logits_are_the_same_boundary() -> None:
    w = direction(1)
    found = linear_pair(w, 0.3, 1.7 * w, 1.7 * 0.3)[0].within(200)
    assert found.angsim == pytest.approx(1, abs=1e-6)
    assert found.magsim == pytest.approx(1, abs=5e-3)


def test_fewer_steps_are_the_beginning_of_more() -> None:
    settings = (2 * direction(1), 0.3, 1.5 * direction(2), 0.2)
    many, few = linear_pair(*settings)[0], linear_pair(*settings, max_steps=12)[0]
    assert 0 < few.within(12).valid_fraction < many.within(200).valid_fraction
    assert tuple(many.within(12)) == pytest.approx(tuple(few.within(12)))


def test_images_are_limited_evenly(nets: tuple[Normalized, Normalized], split: Split) -> None:
    pairs = compare(nets[0], nets[0], labelled_by(nets[0], split), images=10)
    assert pairs.images == 10
    assert len(pairs.valid) == 30


def test_modes_are_restored(nets: tuple[Normalized, Normalized], split: Split) -> None:
    own, student = labelled_by(nets[0], split), nets[1].train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    compare(nets[0], student, own)
    assert student.training
    assert not nets[0].training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_nothing_valid_is_not_a_number(nets: tuple[Normalized, Normalized], split: Split) -> None:
    own = labelled_by(nets[0], split)
    found = compare(nets[0], nets[0], own, max_steps=0).within(0)
    assert math.isnan(found.magsim)
    assert math.isnan(found.angsim)
    assert found.valid_fraction == 0
    with pytest.warns(UserWarning, match="no pair of walks reached the boundary"):
        told = Boundary(max_steps=0)(nets[0], nets[0], own)
    assert told == {"magsim": None, "angsim": None, "valid_fraction": 0.0}
    nobody = Split(split.images, (own.labels + 1) % 4)
    assert compare(nets[0], nets[0], nobody).within(10).valid_fraction == 0


def test_the_units_are_those_of_the_teachers_normalisation(nets: tuple[Normalized, Normalized], split: Split) -> None:
    own = labelled_by(nets[0], split)
    assert Boundary()(nets[1], nets[0], own) == pytest.approx(compare(*nets, own, std=0.25).within(10)._asdict())
    assert Boundary()(nets[1], nets[0], own) != pytest.approx(compare(*nets, own, std=1.0).within(10)._asdict())


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["method=kd", "source=queried", "teacher.access=probs"], "teacher.access=probs gives answers alone"),
        (["method=supervised", "teacher=none"], "teacher=none"),
    ],
)
def test_no_gradients_no_metric(overrides: list[str], why: str) -> None:
    (fault,) = faults(composed(*overrides, "controls=none", "metrics=boundary"))
    assert fault.startswith("metrics.boundary: follows the teacher's gradients, but " + why)


# the command


def with_hydra(folder: Path, *overrides: str) -> Path:
    """The files beside a run that Hydra would have left."""
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    return folder


@pytest.mark.filterwarnings("ignore:no pair of walks")  # so little training leaves no boundary to find
def test_a_run_measures_its_student_and_the_command_agrees(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("method=bss", "metrics=boundary", "metrics.boundary.images=20", "method.n_adv=8", "seed=0")
    result = tiny_run(tmp_path / "runs" / "one", *overrides)
    said = {k.removeprefix("boundary/"): v for k, v in result["metrics"].items() if k.startswith("boundary/")}
    assert said.keys() == {"magsim", "angsim", "valid_fraction"}
    with_hydra(result.folder, *overrides)
    plot = tmp_path / "curves.png"
    assert main([str(tmp_path / "runs"), "--images", "20", "--plot", str(plot)]) == 0
    told = capsys.readouterr().out
    assert f"{said['valid_fraction']:.4f}" in told
    assert said["angsim"] is None or f"{said['angsim']:.4f}" in told
    assert plot.stat().st_size > 1000
    for fit in store.glob("fit-*/"):
        shutil.rmtree(fit)
    assert main([str(tmp_path / "runs")]) == 2
    assert "its teacher is not kept in" in capsys.readouterr().err


def test_a_teacher_that_is_not_ours_is_not_built(tmp_path: Path, store: Path) -> None:
    run = tiny_run(tmp_path / "run", "method=supervised")
    finished = open_run(with_hydra(run.folder, "method=supervised"))
    finished.cfg["teacher"]["net"]["_target_"] = "os.getcwd"
    with pytest.raises(UserError, match=r"its teacher os\.getcwd is none of ours"):
        load_teacher(finished)
    finished.cfg["teacher"]["net"] = None
    with pytest.raises(UserError, match="has no teacher"):
        load_teacher(finished)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("kd-boundary: no run in ")
