"""Whatever is wrong with a weights file is said in words, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from kd_lightning.errors import TeacherError
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights, read_weights, write_weights


def network(**settings: object) -> Normalized:
    return Normalized(SmallConvNet(widths=(4, 8), **settings), mean=[0.3], std=[0.4])  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    metadata = {name: f'"{name}" é\n' for name in ("version", "classes", "card", "a", "b")}
    state = network().state_dict() | {"count": torch.tensor(3), "half": torch.ones(3).half(), "none": torch.ones(0, 2)}
    written = set()
    for given in [metadata, dict(reversed(metadata.items()))] * 8:  # a shuffled order would be the same 16 times never
        write_weights(state, tmp_path / "w.safetensors", given)
        written.add((tmp_path / "w.safetensors").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == metadata
    back = read_weights(tmp_path / "w.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, 0.99])
def test_truncated(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(TeacherError, match=rf"{re.escape(str(path))} is truncated, corrupt.*copy it again") as refusal:
        load_weights(network(), path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"version https://git-lfs", b"\x80\x04garbage", b"PK\x03"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_file_altogether(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content * 20)
    with pytest.raises(TeacherError, match="truncated, corrupt or no weights at all"):
        read_weights(path)


def test_a_whole_module_is_refused_not_run(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(TeacherError, match=r"more than tensors \(kd_lightning.*can run code.*net\.state_dict\(\)"):
        read_weights(tmp_path / "module.pt")


def test_no_file_and_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"there is no file .*none\.pt"):
        read_weights(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(TeacherError, match="holds no state dict"):
        read_weights(tmp_path / "epoch.pt")


def test_names_and_shapes_that_differ_are_listed_with_the_nearest(tmp_path: Path) -> None:
    state = network().state_dict()
    state["net.headd.weight"] = state.pop("net.head.weight")
    state["net.features.0.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TeacherError) as refusal:
        load_weights(network(), tmp_path / "w.pt")
    said = str(refusal.value)
    assert "net.head.weight: missing (the file has net.headd.weight)" in said
    assert "net.headd.weight: not in the network" in said
    assert "net.features.0.weight: shape (4, 3, 3, 3), the network has (4, 1, 3, 3)" in said
    assert "SmallConvNet" in said
    assert said.endswith("Choose the network it was saved from")


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    torch.save({f"layer{i}": torch.zeros(1) for i in range(50)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"\.\.\. \d+ more"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["", "net.", "module.", "_orig_mod.", "student.", "student.net.", "model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("safe", [False, True])
def test_usual_prefixes_and_wrappers(tmp_path: Path, prefix: str, wrapper: str | None, safe: bool) -> None:
    torch.manual_seed(1)
    theirs, ours = network(), network()
    state = {prefix + name: value for name, value in theirs.net.state_dict().items()}
    if safe:
        save_file(state, tmp_path / "w.bin")  # told by its content, not by its name
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.bin")
    load_weights(ours, tmp_path / "w.bin")
    assert same(ours.net, theirs.net)
    assert ours.mean.item() == pytest.approx(0.3)


def test_statistics_in_the_file_win(tmp_path: Path) -> None:
    theirs = Normalized(SmallConvNet(widths=(4, 8)), mean=[0.1], std=[0.2])
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = network()
    load_weights(ours, tmp_path / "w.pt")
    assert same(ours, theirs)
