"""Three heads on a ResNet: its size, its names, its means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet

from kd_lightning.errors import TeacherError
from kd_lightning.networks.classifiers.invariant_ensemble import Heads, InvariantEnsemble, load_backbone
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights


def test_as_many_parameters_as_resnet_50_with_three_heads() -> None:
    with torch.device("meta"):
        net = InvariantEnsemble()
    assert sum(p.numel() for p in net.parameters()) == 29_655_032
    assert sum(p.numel() for p in net.backbone.parameters()) == 23_508_032
    assert {k.partition(".")[2] for k in net.state_dict() if k.startswith("m_")} == {"1.weight", "1.bias"}


def test_the_ensemble_says_the_mean_of_its_heads() -> None:
    torch.manual_seed(0)
    net = InvariantEnsemble(num_classes=5, in_channels=1, depth=18).eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        heads = net.heads(x)
        assert all(head.shape == (2, 5) for head in heads)
        torch.testing.assert_close(net(x), torch.stack(heads).mean(0))
    assert not torch.equal(heads.shape, heads.texture)
    assert not torch.equal(heads.shape, heads.bg)


def test_means_of_heads() -> None:
    heads = Heads(torch.tensor([[3.0]]), torch.tensor([[6.0]]), torch.tensor([[9.0]]))
    assert float(heads.average) == 6
    assert float(heads.shape_texture) == 4.5


def test_a_depth_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="depth 18, 34 or 50, got 20"):
        InvariantEnsemble(depth=20)


def test_published_weights_load_by_their_names(tmp_path: Path) -> None:
    net, other = (Normalized(InvariantEnsemble(num_classes=5, depth=18), mean=[0.5], std=[0.5]) for _ in range(2))
    state = {f"module.{k}": v for k, v in net.net.state_dict().items()}
    assert {"module.backbone.0.weight", "module.m_shape.1.weight"} <= state.keys()
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state, "best_acc1_overall": 1.0}, tmp_path / "ckp.pth")
    load_weights(other, tmp_path / "ckp.pth")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_backbone_begins_as_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = resnet.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    net = InvariantEnsemble(num_classes=5, depth=18).eval()
    before = net.m_bg[1].weight.clone()
    load_backbone(net, tmp_path / "resnet18.pth")
    assert torch.equal(net.m_bg[1].weight, before)
    x = torch.rand(2, 3, 32, 32)
    theirs.fc = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        torch.testing.assert_close(net.backbone(x).flatten(1), theirs(x))


def test_a_backbone_of_another_depth(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="there is no file"):
        load_backbone(InvariantEnsemble(num_classes=5, depth=18), tmp_path / "no.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(5)}, tmp_path / "short.pth")
    with pytest.raises(TeacherError, match=r"bn1.bias: missing"):
        load_backbone(InvariantEnsemble(num_classes=5, depth=18), tmp_path / "short.pth")
