"""Numbers for generated images equal their closed forms, and are those of equals where student equals teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from kd_lightning.data.dataset import Split
from kd_lightning.metrics.generation import Generation
from kd_lightning.metrics.generator_quality import (
    extractor,
    fid,
    inception_score,
    kid,
    mask_classes,
    mask_iou,
    mask_statistics,
    mask_to_label,
    per_class,
    ssim,
)
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.normalized import Normalized


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(value: float, n: int = 3) -> Tensor:
    return torch.full((n, 1, 8, 8), value)


# masks


@pytest.mark.parametrize(
    ("value", "bits"), [(0.5, 1.0), (0.25, 0.811278), (0.1, 0.468996), (1e-4, 0.0014731), (0.0, 0.0), (1.0, 0.0)]
)
def test_entropy_of_masks_is_in_bits(value: float, bits: float) -> None:
    found = mask_statistics(masks(value))
    assert found.entropy == pytest.approx(bits, rel=1e-4)
    assert found.mean == pytest.approx(value)


def test_grey_is_what_lies_between_both_ends() -> None:
    mask = torch.tensor([0.0, 0.04, 0.06, 0.5, 0.94, 0.96, 1.0, 1.0]).view(1, 1, 2, 4)
    assert mask_statistics(mask).grey == 3 / 8


def test_iou_is_averaged_over_pairs_and_cuts_at_a_half() -> None:
    a, b = torch.zeros(2, 4, 1, 2, 4)
    a[0, :, :, :2] = b[0, :, :, :2] = 1.0  # the same
    a[1, :, :, :2], b[1, :, :, 2:] = 1.0, 1.0  # apart
    a[2, :, :, :3], b[2, :, :, 1:] = 0.6, 0.9  # half of four columns
    assert mask_iou(a, b) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert mask_iou(masks(0.4), masks(0.6)) == 0
    assert mask_iou(a, a) == 1
    with pytest.raises(ValueError, match="in pairs"):
        mask_iou(a, b[:2])


class Rows(nn.Module):
    """Answers the first row that is lit; every channel must show the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / channels)
        self.norm = nn.BatchNorm2d(1)  # tells whether it answers in eval mode
        self.channels, self.levels = channels, set[float]()

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        self.levels |= set(x.unique().tolist())
        return self.norm(self.conv(x)).mean(3).squeeze(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_classifier_of_shapes_reads_masks(channels: int, normalized: bool) -> None:
    y = torch.arange(1100) % 8
    mask = torch.full((1100, 1, 8, 8), 0.4)
    mask[torch.arange(1100), 0, y] = 0.6
    rows = Rows(channels)
    net: nn.Module = Normalized(rows, mean=[0.0] * channels, std=[1.0] * channels) if normalized else rows
    assert mask_to_label(net, mask, y) == 1.0
    assert rows.levels == {0.0, 1.0}, "clean shapes are binary"
    assert net.training
    assert int(rows.norm.num_batches_tracked or 0) == 0
    asked = torch.where(y < 2, 5, y)
    assert mask_to_label(net, mask, asked) == pytest.approx(float((y >= 2).double().mean()))
    right = per_class(mask_classes(net, mask) == asked, asked, 8)
    expected = torch.tensor([math.nan, math.nan, 1, 1, 1, 137 / 413, 1, 1])
    torch.testing.assert_close(right, expected, equal_nan=True)


def test_a_network_without_convolutions_reads_masks_too() -> None:
    mask = torch.rand(4, 1, 8, 8, generator=rng())
    for channels in (1, 3):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 10))
        assert mask_classes(net, mask).shape == (4,)
    with pytest.raises(ValueError, match="2 channels"):
        mask_classes(nn.Conv2d(2, 3, 1), mask)


# sets of images


def with_moments(mean: Tensor, std: Tensor) -> Tensor:
    """Features whose sample mean and (diagonal) covariance are exactly these."""
    d = len(mean)
    corners = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    return mean + corners * std * math.sqrt((2 * d - 1) / 2)


def test_fid_between_diagonal_gaussians_is_its_closed_form() -> None:
    mean_a, mean_b = torch.tensor([[0.0, 1, 2, -1], [0.5, 1, 0, 3]]).double()
    std_a, std_b = torch.tensor([[1.0, 2, 0.5, 0], [3, 2, 0.25, 1]]).double()
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    assert fid(with_moments(mean_a, std_a), with_moments(mean_b, std_b)) == pytest.approx(expected, rel=1e-10)


def test_fid_is_torchmetrics_and_needs_no_equal_numbers() -> None:
    a, b = torch.randn(90, 12, generator=rng()), torch.randn(70, 12, generator=rng(1)) @ torch.rand(12, 12) + 0.3
    features = nn.Identity()
    features.num_features = 12  # type: ignore[assignment]
    metric = FrechetInceptionDistance(features)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert fid(a, b) == pytest.approx(float(metric.compute()), rel=1e-8)


@pytest.mark.parametrize("n", [20, 300])
def test_fid_of_equal_sets_is_0_with_few_images_too(n: int) -> None:
    a = 50 * torch.randn(n, 64, generator=rng()) + 100
    assert fid(a, a.flip(0)) < 1e-8


def test_kid_is_the_unbiased_estimate() -> None:
    a, b = torch.randn(60, 5, generator=rng()).double(), torch.randn(60, 5, generator=rng(1)).double() + 0.5
    assert kid(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-10)
    many = torch.randn(1300, 5, generator=rng(2)).double()  # more than at once, and not as many

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 5 + 1) ** 3

    within_a = (k(a, a).sum() - k(a, a).diag().sum()) / (60 * 59)
    within_b = (k(many, many).sum() - k(many, many).diag().sum()) / (1300 * 1299)
    assert kid(a, many) == pytest.approx(float(within_a + within_b - 2 * k(a, many).mean()), rel=1e-10)


def test_kid_of_samples_that_are_alike_is_0_on_average() -> None:
    found = [kid(*torch.randn(2, 30, 3, generator=rng(seed))) for seed in range(200)]
    spread = torch.tensor(found).std()
    assert abs(sum(found) / 200) < 3 * float(spread) / math.sqrt(200)
    assert min(found) < 0


@pytest.mark.parametrize("distance", [fid, kid])
def test_distances_want_features_of_several_images(distance: Any) -> None:
    with pytest.raises(ValueError, match="two images"):
        distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="two images"):
        distance(torch.zeros(5, 3), torch.zeros(5, 4))


def test_inception_score_has_its_ends() -> None:
    assert inception_score(torch.full((40, 10), 0.1)) == pytest.approx(1)
    assert inception_score(torch.eye(10).repeat(4, 1)) == pytest.approx(10)
    halves = torch.eye(10).repeat_interleave(4, 0)  # each half shows five classes
    assert inception_score(halves) == pytest.approx(10)
    assert inception_score(halves, splits=2) == pytest.approx(5)
    p = torch.rand(30, 4, generator=rng()).softmax(1).double()
    reference = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert inception_score(p) == pytest.approx(float(reference))


def test_ssim_is_1_for_equal_images_and_less_for_others() -> None:
    x = torch.rand(4, 3, 32, 32, generator=rng())
    noise = torch.randn(x.shape, generator=rng(1))
    assert ssim(x, x) == pytest.approx(1)
    flat = (torch.full((2, 1, 16, 16), level) for level in (0.02, 0.06))
    assert ssim(*flat) == pytest.approx((2 * 0.02 * 0.06 + 1e-4) / (0.02**2 + 0.06**2 + 1e-4), rel=1e-3), (
        "luminance alone"
    )
    assert ssim(x, (x + 0.3 * noise).clamp(0, 1)) < ssim(x, (x + 0.1 * noise).clamp(0, 1)) < 1


def test_features_are_those_before_the_last_layer() -> None:
    net = LeNet5(num_classes=10, in_channels=1).train()
    x = torch.rand(3, 3, 32, 32, generator=rng())
    features = extractor(net)(x)
    assert features.dim() == 2
    head = net.get_submodule("head")
    torch.testing.assert_close(head(features), net.eval()(x.mean(1, keepdim=True)).detach())
    assert torch.equal(extractor(net)(x[:, :1]), extractor(net)(x[:, :1].clone()))
    wide = LeNet5(num_classes=10, in_channels=3)
    torch.testing.assert_close(extractor(wide)(x[:, :1]), extractor(wide)(x[:, :1].repeat(1, 3, 1, 1)))


# students beside their teacher


class Mechanisms(nn.Module):
    """Draws a mask or a texture from latents and labels."""

    mechanisms = ("shape", "fg", "bg")
    latent = 4

    def __init__(self) -> None:
        super().__init__()
        widths = {"shape": 1, "fg": 3, "bg": 3}
        self.nets = nn.ModuleDict({im: nn.Linear(self.latent + 10, width * 32 * 32) for im, width in widths.items()})

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        drawn = self.nets[im](torch.cat([z, nn.functional.one_hot(y, 10).float()], 1))
        return (2 * drawn).sigmoid().view(len(z), -1, 32, 32)


@torch.no_grad()
def test_a_student_that_equals_its_teacher_cannot_be_told_from_it() -> None:
    torch.manual_seed(0)
    teacher, student, other = Mechanisms(), Mechanisms(), Mechanisms()
    student.load_state_dict(teacher.state_dict())
    z, y = torch.randn(64, 4, generator=rng()), torch.arange(64) % 10
    t, s, o = ([net.draw(im, z, y) for im in net.mechanisms] for net in (teacher, student, other))
    features = extractor(LeNet5(num_classes=10, in_channels=3))
    images = [features(m * f + (1 - m) * b) for m, f, b in (t, s, o)]
    assert mask_iou(t[0], s[0]) == 1
    assert fid(images[0], images[1]) < 1e-9
    assert ssim(t[1], s[1]) == pytest.approx(1)
    assert mask_iou(t[0], o[0]) < 0.8
    assert fid(images[0], images[2]) > 1e-4


# a generator that a run has trained


class Shades(nn.Module):
    """Images of 4x4 as bright as z says, or as the label says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        level = z[:, 0] / 2 + 0.5 if y is None else y / 4 + 0.125
        return (self.scale * level)[:, None, None, None].expand(-1, 1, 4, 4)


class Reader(nn.Module):
    """Classes of quarters of the range, from three features of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.head = nn.Linear(3, 4)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            self.features[1].weight[0] = 1 / 16  # type: ignore[index]
            self.head.weight[:, 0] = torch.arange(4.0)
            self.head.bias.copy_(-torch.tensor([0.0, 0.25, 0.75, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def levels(n: int = 400, seed: int = 0) -> Split:
    x = torch.rand(n, generator=rng(seed))
    return Split((255 * x).byte()[:, None, None, None].expand(-1, 1, 4, 4), (4 * x).long().clamp(max=3))


def measured(folder: Path, scale: float = 1.0, **settings: Any) -> dict[str, float | None]:
    file = folder / "generator.safetensors"
    save_file({"scale": torch.tensor(scale)}, file)
    metric = Generation(**{"generator": Shades(), "latent": 2, "prior": "uniform", "name": "reader", **settings})
    return metric(None, Reader(), levels(), weights=file, samples=folder)


def test_a_generator_of_the_real_distribution_is_near_it(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert list(found) == ["FID-reader", "KID-reader", "classes", "entropy"]
    assert found["FID-reader"] == pytest.approx(0.0, abs=0.01)
    assert found["KID-reader"] == pytest.approx(0.0, abs=0.01)
    assert found["classes"] == 4
    assert found["entropy"] == pytest.approx(1.0, abs=0.02)
    assert (tmp_path / "drawn.png").is_file()


def test_one_of_a_single_class_is_not(tmp_path: Path) -> None:
    """Its weights are those of the file."""
    found = measured(tmp_path, scale=0.2)
    assert found["classes"] == 1
    assert found["entropy"] == 0.0
    mean = levels().images.float().mean() / 255
    assert found["FID-reader"] == pytest.approx(float((0.8 * mean) ** 2), rel=0.5)


def test_labels_are_drawn_evenly_and_a_seed_draws_the_same(tmp_path: Path) -> None:
    assert measured(tmp_path, conditional=True)["entropy"] == pytest.approx(1.0)
    assert measured(tmp_path) == measured(tmp_path) != measured(tmp_path, seed=1)
    assert measured(tmp_path, images=100)["FID-reader"] != measured(tmp_path)["FID-reader"]


def test_a_classifier_of_its_own_takes_the_place_of_the_teacher(tmp_path: Path) -> None:
    save_file(Reader().state_dict(), tmp_path / "reader.safetensors")
    own = {"network": Reader(), "weights": str(tmp_path / "reader.safetensors")}
    file = tmp_path / "generator.safetensors"
    save_file({"scale": torch.tensor(1.0)}, file)
    metric = Generation(generator=Shades(), latent=2, prior="uniform", name="reader", classifier=own)
    assert metric(None, None, levels(), weights=file) == measured(tmp_path)
    assert Generation(generator=Shades(), latent=2)(None, None, levels(), weights=file) == {}
