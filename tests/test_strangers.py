"""Files that somebody else has made are data: none runs code, none hangs, none fills the memory, each is one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning.cli.predict import image_files, predictions
from kd_lightning.cli.report import main as report
from kd_lightning.core.strangers import read_json, read_yaml
from kd_lightning.data.datasets import folder as image_folder
from kd_lightning.errors import DataError, TeacherError, UserError
from kd_lightning.networks.classifiers.resnet import CifarResNet
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights, read_weights
from kd_lightning.results.run_index import read_result
from kd_lightning.results.student_files import load_student, save_student
from kd_lightning.teachers.answer_types import Busy
from kd_lightning.teachers.budget.rate_limit import Pace, RateLimiter

SMALL = f"{SmallConvNet.__module__}.SmallConvNet"
RESNET = f"{CifarResNet.__module__}.CifarResNet"
NETWORK = {"_target_": SMALL, "widths": [4, 8], "num_classes": 3}
CARD: dict[str, Any] = {
    "network": NETWORK,
    "classes": ["ant", "bee", "cat"],
    "image_shape": [1, 8, 8],
    "mean": [0.2],
    "std": [0.5],
}


@pytest.fixture(autouse=True)
def little_memory() -> Any:
    """What wants gigabytes fails at once instead of filling the machine."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (6_000_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def student() -> Normalized:
    torch.manual_seed(0)
    return Normalized(SmallConvNet(widths=(4, 8), num_classes=3), mean=[0.2], std=[0.5])


def saved(where: Path, **card: Any) -> Path:
    where.mkdir(exist_ok=True)
    save_student(student(), where, CARD | card)
    return where


def one_line(error: pytest.ExceptionInfo[UserError], file: Path) -> None:
    assert "\n" not in str(error.value)
    assert file.name in str(error.value)


# what cards name


def deep(levels: int) -> Any:
    tree: Any = 1
    for _ in range(levels):
        tree = [tree]
    return tree


TOUCH = {"_target_": "os.system", "_args_": ["touch touched"]}
STRANGE_CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "a resolver": ({"extra": "${oc.create:{_target_: os.system, _args_: [touch touched]}}"}, "interpolation"),
    "inside the network": ({"network": NETWORK | {"widths": "${oc.env:HOME}"}}, "interpolation"),
    "escaped": ({"network": NETWORK | {"widths": "\\${oc.env:HOME}"}}, "interpolation"),
    "in a key": ({"metrics": {"${oc.env:HOME}": 1}}, "interpolation"),
    "in the mean": ({"mean": ["${oc.env:HOME}"]}, "interpolation"),
    "torch.load": ({"network": NETWORK | {"widths": {"_target_": "torch.load", "f": "x"}}}, "not on the allowlist"),
    "numpy.load": ({"network": {"_target_": "numpy.load", "file": "x"}}, "not on the allowlist"),
    "builtins": ({"network": NETWORK | {"widths": {"_target_": "builtins.list"}}}, "not on the allowlist"),
    "torch.hub": ({"network": {"_target_": "torch.hub.load", "repo_or_dir": "a/b"}}, "not on the allowlist"),
    "a partial": ({"network": NETWORK | {"widths": TOUCH | {"_partial_": True}}}, "not on the allowlist"),
    "arguments": ({"network": {"_target_": SMALL, "_args_": [TOUCH]}}, "not on the allowlist"),
    "not recursive": ({"network": NETWORK | {"_recursive_": False}}, "_recursive_"),
    "no target": ({"network": {"_args_": [1]}}, "names nothing to build"),
    "a target that is no name": ({"network": {"_target_": ["os.system"]}}, "names nothing to build"),
    "hydra's own": ({"network": {"_target_": "hydra.utils.instantiate", "config": TOUCH}}, "not on the allowlist"),
    "our function": (
        {"network": {"_target_": "kd_lightning.networks.classifiers.vgg16.trained", "weights": "x"}},
        "not on the allowlist",
    ),
    "our effects": ({"network": {"_target_": "kd_lightning.data.datasets.files.load"}}, "not on the allowlist"),
    "through a module": (
        {"network": {"_target_": "kd_lightning.networks.classifiers.small.nn.Flatten"}},
        "not on the allowlist",
    ),
    "torch's insides": ({"network": {"_target_": "torch.nn.modules.module.Module"}}, "not on the allowlist"),
    "weights that download": (
        {"network": {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}},
        "would fetch something",
    ),
    "by the old name": ({"network": {"_target_": "torchvision.models.resnet18", "pretrained": True}}, "would fetch"),
    "by place": ({"network": {"_target_": "torchvision.models.resnet18", "_args_": [True]}}, "_args_"),
    "by default": ({"network": {"_target_": "torchvision.models.segmentation.fcn_resnet50"}}, "weights_backbone=null"),
    "any model": (
        {"network": {"_target_": "torchvision.models.get_model", "name": "resnet18"}},
        "not on the allowlist",
    ),
    "too wide": (
        {"network": {"_target_": "torch.nn.Linear", "in_features": 30_000, "out_features": 30_000}},
        "bytes of",
    ),
    "too deep": (
        {
            "network": {
                "_target_": "kd_lightning.networks.classifiers.resnet.CifarResNet",
                "depth": 600_002,
                "num_classes": 3,
            }
        },
        "more than",
    ),
    "too large a number": ({"network": NETWORK | {"num_classes": 10**9}}, "at most 1,000,000"),
    "nested": ({"network": NETWORK | {"widths": deep(70)}}, "levels deep"),
    "nested without an end": ({"extra": deep(900)}, "levels deep|RecursionError"),
    "no mean": ({"mean": ["x"]}, "mean and std"),
    "infinite": ({"std": [float("inf")]}, "mean and std"),
    "a hole for overrides": ({"image_shape": [1, "8 data.root=/", 8]}, "image_shape"),
    "a huge image": ({"image_shape": [3, 10**6, 10**6]}, "image_shape"),
    "no names": ({"classes": [1, 2, 3]}, "classes: expected"),
    "another number of names": ({"task": {"kind": "classification", "num_classes": 2}}, "3 classes have names"),
    "no task": ({"task": {"kind": "regression", "low": "a", "high": 1, "unit": "x"}}, "not the card"),
    "a list for a network": ({"network": [1]}, "network and metrics"),
    "many digits": ({"format_version": 10**4000}, "format_version of many digits"),
    "not a network": ({"network": {"_target_": SMALL, "_partial_": True}}, "expected a network"),
}


@pytest.mark.parametrize("case", STRANGE_CARDS)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_strange_cards_are_one_line_and_run_nothing(
    case: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, expected = STRANGE_CARDS[case]
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "run", **changes)
    if form == "file":
        card = json.loads((path / "student.json").read_text()) if "digits" not in case else CARD | changes
        path = tmp_path / "run.safetensors"
        save_file(student().state_dict(), path, metadata={"card": json.dumps({"format_version": 1} | card)})
    with pytest.raises(UserError, match=expected) as error:
        load_student(path)
    one_line(error, path)
    assert not (tmp_path / "touched").exists()


def test_networks_of_others_without_their_weights_are_built(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    network = {"_target_": "torchvision.models.shufflenet_v2_x0_5", "num_classes": 3, "weights": None}
    net = Normalized(shufflenet_v2_x0_5(num_classes=3), mean=[0.1] * 3, std=[0.5] * 3)
    shape = {"image_shape": [3, 32, 32], "mean": [0.1] * 3, "std": [0.5] * 3}
    save_student(net, tmp_path, CARD | shape | {"network": network})
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_student(tmp_path)(images), net.eval()(images))


def test_what_a_strangers_card_names_is_built_with_trust(tmp_path: Path) -> None:
    saved(tmp_path, network=NETWORK | {"widths": {"_target_": "builtins.list", "_args_": [[4, 8]]}})
    with pytest.raises(UserError, match=r"load_student\(\.\.\., trust=True\) or --trust"):
        load_student(tmp_path)
    assert load_student(tmp_path, trust=True).card["classes"] == CARD["classes"]


# weights


def put(file: Path, **values: Any) -> Path:
    torch.save(student().state_dict() | values, file)
    return file


def first(change: Callable[[Tensor], Tensor]) -> Callable[[Path], Path]:
    """Weights of which one has been changed."""
    name = "net.features.0.weight"
    return lambda file: put(file, **{name: change(student().state_dict()[name])})


def itself(file: Path) -> Path:
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["model"] = content
    torch.save(content, file)
    return file


def inflating(file: Path) -> Path:
    torch.save({"a": torch.zeros(1)}, file)
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(20_000_000) if name.endswith("data/0") else old.read(name))
    file.write_bytes(packed.getvalue())
    return file


def versioned(version: str) -> Callable[[Path], Path]:
    def write(file: Path) -> Path:
        file = file.with_suffix(".safetensors")
        save_file(student().state_dict(), file, metadata={"format_version": version})
        return file

    return write


def header(size: int, text: bytes = b"{}") -> Callable[[Path], Path]:
    return lambda file: (file.write_bytes(struct.pack("<Q", size) + text), file)[1]


STRANGE_WEIGHTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "NaN": (first(lambda v: v * float("nan")), r"features\.0\.weight holds NaN or infinity"),
    "one infinity": (first(lambda v: v.index_fill(0, torch.tensor(1), float("inf"))), "holds NaN or infinity"),
    "integers": (first(lambda v: v.long()), "is int64, the network's is float32"),
    "booleans": (first(lambda v: v > 0), "is bool, the network's is float32"),
    "complex": (first(lambda v: v.to(torch.complex64)), "is complex64, the network's is float32"),
    "meta": (first(lambda v: v.to("meta")), "is a meta tensor"),
    "sparse": (first(lambda v: v.to_sparse()), "is a sparse_coo tensor"),
    "compressed": (first(lambda v: v.flatten(1).to_sparse_csr()), "is a sparse_csr tensor"),
    "quantized": (first(lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)), "quantized"),
    "integer names": (lambda f: (torch.save({3: torch.ones(1)}, f), f)[1], "names a tensor 3"),
    "itself": (itself, "nested mappings"),
    "many digits": (lambda f: put(f, format_version=10**6000), "format_version of many digits|more than tensors"),
    "digits as text": (versioned("9" * 6000), "w.safetensors .*integer"),
    "inflating": (inflating, "would become"),
    "a truncated zip": (lambda f: (put(f), os.truncate(f, 3000), f)[2], "is truncated"),
    "a huge header": (header(10**15), "truncated, corrupt"),
    "a nested header": (header(200_000, b'{"a":' + b"[" * 199_995), "truncated, corrupt"),
    "nothing": (lambda f: (f.write_bytes(b""), f)[1], "truncated, corrupt"),
    "a list": (lambda f: (torch.save([torch.ones(1)], f), f)[1], "no state dict"),
    "a long name": (lambda f: (f.write_bytes(b"c" + b"x" * 200_000 + b"\ny\n."), f)[1], "more than tensors"),
    "a plain pickle": (lambda f: (f.write_bytes(pickle.dumps({"a": [1]})), f)[1], "no state dict|truncated, corrupt"),
    "a folder": (lambda f: (f.mkdir(), f)[1], "a folder, not a regular file"),
    "a pipe": (lambda f: (os.mkfifo(f), f)[1], "a pipe, not a regular file"),
    "a device": (lambda f: (f.symlink_to("/dev/zero"), f)[1], "a device, not a regular file"),
    "a link to itself": (lambda f: (f.symlink_to(f), f)[1], "a link that leads nowhere"),
    "a link to nothing": (lambda f: (f.symlink_to("gone"), f)[1], "a link that leads nowhere"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", STRANGE_WEIGHTS)
def test_strange_weights_are_one_line(case: str, tmp_path: Path) -> None:
    write, expected = STRANGE_WEIGHTS[case]
    file = write(tmp_path / "w.pt")
    with pytest.raises(UserError, match=expected) as error:
        load_weights(student(), file)
    one_line(error, file)


def test_sound_weights_pass_with_counters_and_in_half_precision(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt")["1.num_batches_tracked"].dtype == torch.int64


def test_a_student_that_answers_nan_is_an_error(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    state = student().state_dict()
    large = {
        k: torch.full_like(v, 3e38) if v.is_floating_point() and k.startswith("net.") else v for k, v in state.items()
    }
    save_file(large, saved(tmp_path / "run") / "student.safetensors", metadata={"format_version": "1"})
    loaded = load_student(tmp_path / "run")
    with pytest.raises(UserError, match="run answers NaN or infinity"):
        loaded(torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match="run answers NaN or infinity"):
        list(predictions(loaded, [tmp_path / "a.png"]))


@pytest.mark.parametrize(("network", "classes"), [({"num_classes": 5}, 3), ({"in_channels": 3}, 3)])
def test_a_network_of_another_shape_than_its_card_says_is_one_line(
    network: dict[str, Any], classes: int, tmp_path: Path
) -> None:
    net = Normalized(SmallConvNet(widths=(4, 8), **{"num_classes": 3, **network}), mean=[0.2], std=[0.5])
    save_student(net, tmp_path, CARD | {"network": NETWORK | network})
    with pytest.raises(UserError, match=r"answers \(2, 5\), its card says \(2, 3\)|fails on images"):
        load_student(tmp_path)(torch.rand(2, 1, 8, 8))


# text


STRANGE_TEXT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "a pipe"),
    "a device": (lambda f: f.symlink_to("/dev/zero"), "a device"),
    "a link to itself": (lambda f: f.symlink_to(f), "leads nowhere"),
    "no text": (lambda f: f.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "too large": (lambda f: f.write_bytes(b" " * 17_000_000), "larger than"),
    "deep": (lambda f: f.write_text("[" * 100_000), "levels deep|RecursionError"),
    "rather deep": (lambda f: f.write_text("[" * 200 + "]" * 200), "levels deep"),
}


@pytest.mark.parametrize("case", STRANGE_TEXT)
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_strange_text_is_one_line(case: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    write, expected = STRANGE_TEXT[case]
    write(tmp_path / "f")
    with pytest.raises(UserError, match=expected) as error:
        read(tmp_path / "f")
    one_line(error, tmp_path / "f")


def test_yaml_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    laughs = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for text, said in {
        laughs: "refers to another part",
        "a: &a [*a]": "refers",
        "a: !!python/name:os.system": "cannot be",
    }.items():
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nwhen: 2020-01-01\ntrue: true\nnone: null\n")
    assert read_yaml(tmp_path / "c.yaml") == {"lr": 1e-3, "when": "2020-01-01", True: True, "none": None}


STRANGE_RESULTS: dict[str, Any] = {
    "metrics": [{"metrics": 3}, {"metrics": {"test/accuracy": "x"}}, {"metrics": {"test/accuracy": {"a": 1}}}],
    "ended_by": [{"ended_by": {"student": 3}}, {"ended_by": {"student": {"by": "x", "round": "1", "of": 2}}}],
    "cost": [{"cost": [1]}],
    "task": [{"task": {"unit": 3}}],
    "seed": [{"seed": [1]}],
    "huge": [{"metrics": {"test/accuracy": 10**400}}],
}


@pytest.mark.parametrize("case", STRANGE_RESULTS)
def test_strange_results_are_unreadable_and_the_table_goes_on(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, odd in enumerate(STRANGE_RESULTS[case]):
        made(tmp_path / str(i), **odd)
    made(tmp_path / "sound")
    assert report([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("is not a result of kd_lightning") == len(STRANGE_RESULTS[case])
    assert "0.9000" in said


def made(folder: Path, config: str = "seed: 0\n", **result: Any) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    whole = {"format_version": 1, "status": "ok", "metrics": {"test/accuracy": 0.9}, "seed": 0} | result
    (folder / "result.json").write_text(json.dumps(whole))
    return folder


def test_a_report_reads_no_environment_and_resolves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("READERS_SECRET", "hunter2")
    for i in range(2):
        made(tmp_path / str(i), "lr: ${oc.env:READERS_SECRET}\nseed: 0\n", seed=i)
        (tmp_path / str(i) / ".hydra" / "overrides.yaml").write_text("[lr=3]" if i else "[]")
    assert report([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "hunter2" not in said
    assert "${oc.env:READERS_SECRET}" in said


def test_a_result_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(UserError, match="a pipe, not a regular file"):
        read_result(tmp_path)


# images


def png(width: int, height: int) -> bytes:
    """A picture of one colour: a few bytes for any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(width + 1)) for _ in range(min(height, 2000))) + packer.flush()
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


STRANGE_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "long": (lambda f: f.write_bytes(png(1_000_000, 1)), "would become"),
    "high": (lambda f: f.write_bytes(png(1, 1_000_000)), "would become"),
    "large": (lambda f: f.write_bytes(png(9_000, 9_000)), "at most 64,000,000"),
    "postscript": (
        lambda f: f.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
        "cannot identify",
    ),
    "a pipe": (os.mkfifo, "a pipe"),
    "a link to itself": (lambda f: f.symlink_to(f), "leads nowhere"),
    "a link to nothing": (lambda f: f.symlink_to("gone"), "leads nowhere"),
    "a device": (lambda f: f.symlink_to("/dev/zero"), "a device"),
    "nothing": (lambda f: f.write_bytes(b""), "cannot identify"),
}


@pytest.mark.parametrize("case", STRANGE_IMAGES)
def test_strange_images_are_named_or_skipped(case: str, tmp_path: Path) -> None:
    from PIL import Image

    write, expected = STRANGE_IMAGES[case]
    (tmp_path / "set" / "train" / "ant").mkdir(parents=True)
    Image.new("L", (8, 8), 200).save(tmp_path / "set" / "train" / "ant" / "sound.png")
    (tmp_path / "set" / "train" / "bee").mkdir()
    Image.new("L", (8, 8), 100).save(tmp_path / "set" / "train" / "bee" / "another.png")
    bad = tmp_path / "set" / "train" / "ant" / "bad.png"
    write(bad)
    load: dict[str, Any] = {"root": tmp_path / "set", "size": 64, "channels": 1, "val": 0}
    with pytest.raises(DataError, match=rf"cannot decode .*bad\.png: .*{expected}") as error:
        image_folder.load(**load)
    one_line(error, bad)
    assert image_folder.load(**load, skip_bad=True).skipped == 1
    loaded = load_student(saved(tmp_path / "run", image_shape=[1, 64, 64]))
    said = {p.file.name: p for p in predictions(loaded, image_files([tmp_path / "set", bad]))}
    assert said["bad.png"].problem
    assert said["sound.png"].label in CARD["classes"]


def test_class_folders_that_lead_in_a_circle_are_no_class(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="no class folders"):
        image_folder.load(root=tmp_path, size=8)


# a teacher that wants to be left alone


def test_a_teacher_is_left_alone_as_long_as_the_pace_allows() -> None:
    import threading

    waited: list[float] = []
    gate = RateLimiter(Pace(), clock=lambda: 0.0, sleep=waited.append)
    gate.refused(Busy("later", 599.0), 1, threading.Event())
    assert waited == [599.0]
    with pytest.raises(TeacherError, match=r"a pause of 999999999 seconds, teacher\.pace\.longest_wait=600"):
        gate.refused(Busy("later", 999999999.0), 1, threading.Event())
    RateLimiter(Pace(longest_wait=1e10), sleep=waited.append).refused(Busy("later", 1e9), 1, threading.Event())
    assert waited[1:] == [1e9]


# the commands


@pytest.mark.slow
def test_the_commands_say_one_line(tmp_path: Path) -> None:
    for name, changes in {"a": {"extra": "${oc.env:HOME}"}, "b": {"network": TOUCH}}.items():
        saved(tmp_path / name, **changes)
    code = (
        "import sys\n"
        "from kd_lightning.cli.predict import main as predict\n"
        "from kd_lightning.cli.export import main as export\n"
        "from kd_lightning.cli.evaluate import main as evaluate\n"
        "from kd_lightning.cli.boundary import main as boundary\n"
        "codes = [c for run in sys.argv[1:] for c in (predict([run, run]), export([run, '--safetensors', run + '/x']),"
        " evaluate([run, 'data=digits']), boundary([run]))]\nassert codes == [2] * 8, codes"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "a", "b"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 8
    assert not (tmp_path / "touched").exists()


def test_exported_students_are_sound(tmp_path: Path) -> None:
    loaded = load_student(saved(tmp_path))
    assert set(load_file(tmp_path / "student.safetensors")) == set(loaded.state_dict())
