"""CGN's networks for ImageNet: as large as the paper's, frozen where they should be; VGG-16 is torchvision's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg

from kd_lightning.errors import TeacherError
from kd_lightning.networks.classifiers import vgg16
from kd_lightning.networks.generators import biggan_deep, gan_blocks
from kd_lightning.networks.generators.cgn_imagenet import MECHANISMS, ImageNetCgn, truncated_normal
from kd_lightning.networks.generators.u2net import U2Net

MAPS = [(64, 32), (128, 16), (256, 8), (512, 4)]


class Painter(nn.Module):
    """One colour of a latent and a class, the truncation added."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor, y: Tensor, truncation: float = 0.0) -> Tensor:
        colour = self.scale * (z[:, 0] + y + truncation)
        return colour[:, None, None, None].expand(-1, 3, 4, 4)


class Grey(nn.Module):
    """Saliency of a bright image, and a norm that would count in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean(1, keepdim=True))


def painted(truncation: float | None = None) -> ImageNetCgn:
    return ImageNetCgn(
        f_shape=Painter(0.1), f_text=Painter(0.2), f_bg=Painter(0.3), u2net=Grey(), truncation=truncation
    )


def test_as_many_parameters_as_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_blocks, "spectral_norm", lambda layer, **_: layer)  # adds none, and takes its time
    with torch.device("meta"):
        parts = [biggan_deep.BigGanDeepGenerator() for _ in range(3)]
        net = ImageNetCgn(f_shape=parts[0], f_text=parts[1], f_bg=parts[2], u2net=U2Net())
    assert sum(p.numel() for p in net.parameters()) == 211_652_368
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 167_642_499


def test_each_mechanism_draws_by_its_own_network() -> None:
    net = painted().eval()
    z, y = torch.tensor([[0.0], [0.5]]), torch.tensor([2, 1])
    drawn = {im: net.draw(im, z, y) for im in MECHANISMS}
    assert drawn["shape"].shape == (2, 1, 4, 4)
    assert drawn["fg"].shape == drawn["bg"].shape == (2, 3, 4, 4)
    for im, scale in (("shape", 0.1), ("fg", 0.2), ("bg", 0.3)):
        expected = scale * torch.tensor([2.0, 1.5])
        torch.testing.assert_close(drawn[im][:, 0, 0, 0], expected, rtol=1e-4, atol=1e-5)
    mask = drawn["shape"]
    torch.testing.assert_close(net(z, y), mask * drawn["fg"] + (1 - mask) * drawn["bg"])


def test_a_mask_is_cut_off() -> None:
    net = painted().eval()
    masks = net.draw("shape", torch.tensor([[-50.0], [50.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(masks[:, 0, 0, 0], torch.tensor([1e-4, 0.9999]))


def test_the_truncation_reaches_the_generators() -> None:
    z, y = torch.zeros(1, 1), torch.tensor([1])
    assert float(painted(0.5).draw("fg", z, y)[0, 0, 0, 0].detach()) == pytest.approx(0.3)
    assert float(painted().draw("fg", z, y)[0, 0, 0, 0].detach()) == pytest.approx(0.2)


def test_the_saliency_net_is_frozen_and_gradients_cross_it() -> None:
    net = painted().train()
    assert net.f_shape.training
    assert not net.u2net.training
    net.draw("shape", torch.full((1, 1), 3.0), torch.tensor([1])).sum().backward()
    assert net.f_shape.scale.grad is not None
    assert all(p.grad is None for p in net.u2net.parameters())
    assert not net.u2net.norm.running_mean.any()  # type: ignore[union-attr,operator]


def test_latents_are_cut_off() -> None:
    rng = torch.Generator().manual_seed(0)
    z = truncated_normal(20_000, 2, rng=rng)
    assert z.shape == (20_000, 2)
    assert 1.95 < float(z.abs().max()) <= 2
    assert float(z.std()) == pytest.approx(0.8796, abs=0.01)
    half = truncated_normal(20_000, 2, rng=rng.manual_seed(0), truncation=0.5)
    torch.testing.assert_close(half, z / 2)


def test_vgg16_is_torchvisions(tmp_path: Path) -> None:
    theirs = vgg.make_layers(vgg.cfgs["D"])
    state = {f"features.{k}": v for k, v in theirs.state_dict().items()} | {"classifier.0.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "vgg16.pth")
    net = vgg16.trained(tmp_path / "vgg16.pth")
    assert net is not None
    assert sum(p.numel() for p in net.parameters()) == 7_635_264
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found = net(x)
        assert [tuple(m.shape) for m in found] == [(1, c, s, s) for c, s in MAPS]
        for last, seen in zip((3, 8, 15, 22), found, strict=True):
            torch.testing.assert_close(seen, theirs[: last + 1](2 * x - 1))


def test_without_a_file_there_is_no_vgg16() -> None:
    assert vgg16.trained(None) is None


def test_files_that_are_no_vgg16(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="there is no file"):
        vgg16.trained(tmp_path / "no.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.x": torch.zeros(1)}, tmp_path / "half.pth")
    with pytest.raises(TeacherError, match=re.escape("features.0.bias: missing")):
        vgg16.trained(tmp_path / "half.pth")
