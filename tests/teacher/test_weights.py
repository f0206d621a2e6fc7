"""Whatever is wrong with a weights file is said in words, with what to do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    torch.save(network().state_dict() | {f"layer{i}": torch.zeros(1) for i in range(50)}, tmp_path / "w.pt")
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


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


LEFT: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a loss beside it": (
        lambda s: {"state_dict": under("model", s) | {"criterion.weight": torch.ones(10)}, "epoch": 3},
        "left out criterion.weight",
    ),
    "backbone": (lambda s: {"state_dict": under("backbone", s)}, ""),
    "any other prefix": (lambda s: under("my.encoder", s), ""),
    "parallel and compiled": (lambda s: under("module._orig_mod", s), ""),
    "compiled inside": (lambda s: {k.replace(".", "._orig_mod.", 1): v for k, v in s.items()}, ""),
    "net_state_dict": (lambda s: {"net_state_dict": s}, ""),
    "of an average": (lambda s: {"state_dict_ema": s}, ""),
    "any other wrapper": (lambda s: {"mine": s, "optimizer": {"state": {0: torch.ones(1)}, "param_groups": []}}, ""),
    "a profiler's counters": (
        lambda s: s | {"total_ops": torch.zeros(1), "features.total_params": torch.zeros(1)},
        "left out features.total_params, total_ops",
    ),
    "arguments": (lambda s: {"model": s, "args": argparse.Namespace(lr=1, out=Path("x"))}, ""),
    "numpy scalars": (lambda s: {"model": s, "best": np.float64(0.5), "epoch": np.int64(3)}, ""),
    "a student and its teacher": (lambda s: under("student", s) | under("teacher", s), "left out teacher."),
}


@pytest.mark.parametrize("case", LEFT)
def test_weights_as_other_tools_leave_them(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = network(), network()
    write, said = LEFT[case]
    torch.save(write(dict(theirs.net.state_dict())), tmp_path / "w.pt")
    load_weights(ours, tmp_path / "w.pt")
    assert same(ours.net, theirs.net)
    told = capsys.readouterr().err
    assert said in told if said else not told


def test_where_no_name_fits_the_files_are_listed(tmp_path: Path) -> None:
    torch.save({"blocks.0.w": torch.ones(1), "blocks.1.w": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"not one of its names .* the file has blocks\.0\.w") as refusal:
        load_weights(network(), tmp_path / "w.pt")
    assert "\n" not in str(refusal.value)


def test_a_layer_too_many_is_not_left_out(tmp_path: Path) -> None:
    torch.save(network().net.state_dict() | {"features.9.weight": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"features\.9\.weight: not in the network"):
        load_weights(network(), tmp_path / "w.pt")


def test_old_batch_norms_without_a_counter(tmp_path: Path) -> None:
    theirs, ours = network(batch_norm=True), network(batch_norm=True)
    state = {k: v for k, v in theirs.net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    load_weights(ours, tmp_path / "w.pt")
    assert same(ours.net, theirs.net)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_whole_network_is_named_for_what_it_is(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"is a TorchScript network, .*teacher=torchscript teacher\.file="):
        load_weights(network(), tmp_path / "w.pt")


class Block(nn.Module):
    """An attention block in the words of a newer version of its library."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj, self.norm_before, self.norm_after = (
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.fc1, self.fc2 = nn.Linear(width, 9), nn.Linear(9, width)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.classifier = nn.Linear(4, 10)


OLDER = {"layers.": "encoder.layer.", "q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value",
         "o_proj": "output.dense", "fc1": "intermediate.dense", "fc2": "output.dense_of_all"}  # fmt: skip


def older(name: str) -> str:
    for new, old in OLDER.items():
        name = name.replace(new, old)
    return name


def test_renamed_layers_are_matched_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = Blocks(), Blocks()
    save_file({older(name): value for name, value in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(ours, tmp_path / "w.safetensors")
    assert same(ours, theirs)
    told = capsys.readouterr().err
    assert "encoder.layer.*.self.key -> layers.*.k_proj" in told
    assert "classifier" not in told


def test_layers_that_could_be_either_are_not_matched(tmp_path: Path) -> None:
    state = {
        name.replace("q_proj", "first").replace("k_proj", "second"): value
        for name, value in Blocks().state_dict().items()
    }
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"layers\.0\.q_proj\.weight: missing"):
        load_weights(Blocks(), tmp_path / "w.pt")


def convolutions(names: str) -> nn.Sequential:
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1),
    ]
    net = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        net.add_module(name, layer)
    return net


def test_layers_in_the_order_of_definition_are_matched_in_torch_files_only(tmp_path: Path) -> None:
    theirs, ours = convolutions("zyxwvu"), convolutions("abcdef")
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    load_weights(ours, tmp_path / "w.pt")
    assert same(ours, theirs)
    save_file(theirs.state_dict(), tmp_path / "sorted.safetensors")
    with pytest.raises(TeacherError, match="not one of its names"):
        load_weights(ours, tmp_path / "sorted.safetensors")
