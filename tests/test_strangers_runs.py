"""Run folders, checkpoints, kept artefacts and HDF5 sets that somebody else has made, or that were damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from omegaconf import OmegaConf

from kd_lightning.core.strangers import read_json, read_yaml, refuse_interpolations
from kd_lightning.data.datasets import h5
from kd_lightning.errors import DataError, UserError
from kd_lightning.results.run_loader import data_of, load_generator, load_teacher, open_run
from kd_lightning.store.artifacts import Store

Tiny = Callable[..., Outcome]


@pytest.fixture
def spoiled(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's composition."""
    path = folder / ".hydra" / "config.yaml"
    tree = read_yaml(path)
    change(tree)
    path.write_text(json.dumps(tree))  # JSON is YAML


def test_a_run_leaves_a_composition_of_plain_values(finished: Path) -> None:
    tree = read_yaml(finished / ".hydra" / "config.yaml")
    refuse_interpolations(tree)
    assert tree["method"]["generator"]["size"] == tree["data"]["size"] == 8


def test_a_trained_teacher_is_found_by_the_name_that_the_result_gives(finished: Path, spoiled: Path) -> None:
    teacher = load_teacher(open_run(finished))
    result = json.loads((finished / "result.json").read_text())
    images = data_of(open_run(finished)).test
    assert images is not None
    right = (teacher(images.images.float() / 255).argmax(1) == images.labels).float().mean()
    assert float(right) == pytest.approx(result["metrics"]["teacher/accuracy"], abs=1e-6)
    for name in ("fit-../../etc", "../etc", None, 3):
        (spoiled / "result.json").write_text(json.dumps(result | {"teacher_kept": name}))
        with pytest.raises(UserError, match="does not say which teacher was kept"):
            load_teacher(open_run(spoiled))


def harmful(tmp_path: Path) -> dict[str, Any]:
    return {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'touched'}"]}


COMPOSITIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a resolver": (lambda c: c.update(x="${oc.env:HOME}"), "interpolation"),
    "escaped": (lambda c: c.update(x="\\${oc.create:{_target_: os.system}}"), "interpolation"),
    "a key": (lambda c: c.update({"${oc.env:HOME}": 1}), "interpolation"),
}


@pytest.mark.parametrize("case", COMPOSITIONS)
def test_compositions_that_refer_to_anything_are_not_opened(case: str, spoiled: Path) -> None:
    change, expected = COMPOSITIONS[case]
    rewrite(spoiled, change)
    with pytest.raises(UserError, match=rf"config\.yaml is no composition of plain values .*{expected}.*--trust"):
        open_run(spoiled)


def test_with_trust_an_older_composition_is_resolved_once(spoiled: Path) -> None:
    rewrite(spoiled, lambda c: c["data"]["load"].update(size="${data.size}"))
    assert open_run(spoiled, trust=True).cfg["data"]["load"]["size"] == 8


DATA: dict[str, tuple[dict[str, Any], str]] = {
    "torch.load": ({"_target_": "torch.load", "f": "x"}, "not on the allowlist"),
    "a helper of ours": ({"_target_": "kd_lightning.data.datasets.files._download"}, "not on the allowlist"),
    "another function": ({"_target_": "kd_lightning.data.datasets.h5.opened", "file": "x"}, "not on the allowlist"),
    "a download": (
        {"_target_": "kd_lightning.data.datasets.files.load", "name": "mnist", "root": "x", "download": True},
        "would fetch something",
    ),
    "nested": (
        {"_target_": "kd_lightning.data.datasets.digits.load", "size": {"_target_": "builtins.int"}},
        "not on the allowlist",
    ),
    "a network": (
        {"_target_": "kd_lightning.networks.classifiers.small.SmallConvNet", "num_classes": 3},
        "not on the allowlist",
    ),
    "a huge number": ({"_target_": "kd_lightning.data.datasets.none.load", "classes": 10**9}, "at most 1,000,000"),
    "nonsense": ({"_target_": "kd_lightning.data.datasets.digits.load", "sice": 8}, "cannot be built here"),
    "nothing": ({}, "names nothing to build"),
}


@pytest.mark.parametrize("case", DATA)
def test_strange_data_are_not_loaded(case: str, spoiled: Path) -> None:
    load, expected = DATA[case]
    rewrite(spoiled, lambda c: c["data"].update(load=load))
    with pytest.raises(UserError, match=expected) as error:
        data_of(open_run(spoiled))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["generator", "teacher", "data"])
def test_no_part_of_a_composition_runs_code(part: str, spoiled: Path, tmp_path: Path) -> None:
    bad = harmful(tmp_path)

    def spoil(tree: dict[str, Any]) -> None:
        tree["method"]["generator"]["latent"] = bad
        tree["teacher"]["net"]["widths"] = [bad]
        tree["data"]["load"]["size"] = bad

    rewrite(spoiled, spoil)
    read = {"generator": load_generator, "teacher": load_teacher, "data": data_of}[part]
    with pytest.raises(UserError, match=rf"its {part}: os\.system is not on the allowlist; trust=True"):
        read(open_run(spoiled))
    assert not (tmp_path / "touched").exists()


# checkpoints


PARTS: dict[str, Any] = {
    "state_dict": [3, {"a": 3}, {3: torch.ones(1)}, {"a": torch.ones(1, device="meta")}],
    "epoch": ["1"],
    "global_step": [[1]],
    "loops": [[1]],
    "callbacks": [3],
    "optimizer_states": [{}],
    "lr_schedulers": ["x"],
    "format_version": [10**30, "1", [1]],
}


@pytest.mark.parametrize("part", PARTS)
def test_checkpoints_with_parts_of_other_types_are_one_line(part: str, spoiled: Path) -> None:
    content = torch.load(spoiled / "last.ckpt", weights_only=True)
    for odd in PARTS[part]:
        torch.save(content | {part: odd}, spoiled / "last.ckpt")
        with pytest.raises(UserError, match=r"last\.ckpt (cannot be read|has format_version)") as error:
            load_generator(open_run(spoiled))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["optimizer_states"].__setitem__(0, {"state": [], "param_groups": 3}),
        lambda c: c["loops"]["fit_loop"].update({"epoch_loop.batch_progress": 3}),
        lambda c: c["callbacks"].update(dict.fromkeys(c["callbacks"], 3)),
    ],
)
def test_a_fit_that_cannot_go_on_from_its_checkpoint_says_so(
    spoil: Callable[[Any], object], tiny: Tiny, store: Path, teacher_file: Path
) -> None:
    settings = ("method=dafl", f"teacher.weights={teacher_file}")
    tiny(*settings)
    (kept,) = store.glob("run-*[0-9a-f]")
    shutil.rmtree(kept)
    (fit,) = (f.parent for f in store.glob("fit-*/generator.safetensors"))
    fit.rename(f"{fit}.unfinished")
    checkpoint = Path(f"{fit}.unfinished") / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    spoil(content)
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt: the fit cannot go on from it .*Remove .*begin this fit anew"):
        tiny(*settings)


# kept artefacts


@pytest.mark.parametrize(
    "name",
    [
        "student.safetensors",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("fit.json", "last.ckpt", "metrics.csv", "artifact.json")),
    ],
)
def test_a_kept_fit_with_a_truncated_file_is_set_aside_and_made_again(
    name: str, tiny: Tiny, store: Path, teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("method=kd", f"teacher.weights={teacher_file}")
    before = tiny(*settings)
    (kept,), (fit,) = store.glob("run-*[0-9a-f]"), store.glob("fit-*[0-9a-f]")
    shutil.rmtree(kept)
    os.truncate(fit / name, 20)
    assert tiny(*settings)["metrics"] == before["metrics"]
    assert (fit.with_name(f"{fit.name}.damaged") / name).stat().st_size == 20
    assert f"{fit.name} is damaged (" in (said := capsys.readouterr().err)
    assert name in said


def test_a_kept_file_of_the_right_length_that_is_none_says_how_to_be_rid_of_it(
    tiny: Tiny, store: Path, teacher_file: Path
) -> None:
    settings = ("method=kd", f"teacher.weights={teacher_file}")
    tiny(*settings)
    (kept,), (fit,) = store.glob("run-*[0-9a-f]"), store.glob("fit-*[0-9a-f]")
    shutil.rmtree(kept)
    file = fit / "student.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(UserError, match=rf"student\.safetensors cannot be read .*kd-artifacts rm {fit.name}"):
        tiny(*settings)


def test_an_artefact_of_before_sizes_were_noted_is_used(tmp_path: Path) -> None:
    folder = Store(tmp_path).obtain("thing", {}, lambda f: (f / "a.json").write_text("1") and None)
    meta = read_json(folder / "artifact.json")
    assert meta["files"] == {"a.json": 1}
    del meta["files"]
    (folder / "artifact.json").write_text(json.dumps(meta))
    assert Store(tmp_path).obtain("thing", {}, lambda f: pytest.fail("built over it")) == folder


# HDF5


h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")


def sound(file: Any, *, without: str = "") -> None:
    for part in ("train", "test"):
        pixels = np.arange(4 * 3 * 64, dtype=np.uint64).reshape(4, 3, 8, 8) % 256
        for key, values in {"images": pixels.astype("uint8"), "labels": np.arange(4) % 2}.items():
            if f"{key}_{part}" != without:
                file[f"{key}_{part}"] = values


def outside(file: Any, tmp: Path) -> None:
    (tmp / "secret").write_bytes(bytes(range(256)) * 10)
    file.create_dataset("images_train", (4, 3, 8, 8), "u1", external=[(str(tmp / "secret"), 0, 768)])


def other(file: Any, tmp: Path) -> None:
    with h5py.File(tmp / "other.h5", "w") as there:
        sound(there)
    file["images_train"] = h5py.ExternalLink(str(tmp / "other.h5"), "images_train")


def virtual(file: Any, tmp: Path) -> None:
    with h5py.File(tmp / "other.h5", "w") as there:
        sound(there)
    layout = h5py.VirtualLayout((4, 3, 8, 8), "u1")
    layout[:] = h5py.VirtualSource(str(tmp / "other.h5"), "images_train", (4, 3, 8, 8))
    file.create_virtual_dataset("images_train", layout)


def images(value: Any = None, **how: Any) -> Callable[[Any, Path], object]:
    return lambda file, tmp: file.create_dataset("images_train", data=value, **how)


STRANGE_SETS: dict[str, tuple[Callable[[Any, Path], object], str]] = {
    "external storage": (outside, "keeps its numbers in other files"),
    "an external link": (other, "is a link"),
    "a virtual set": (virtual, "keeps its numbers in other files"),
    "a soft link": (lambda f, _: f.__setitem__("images_train", h5py.SoftLink("/images_test")), "is a link"),
    "a link to nothing": (lambda f, _: f.__setitem__("images_train", h5py.SoftLink("/gone")), "is a link"),
    "a link to itself": (lambda f, _: f.__setitem__("images_train", h5py.SoftLink("/images_train")), "is a link"),
    "a group": (lambda f, _: f.create_group("images_train"), "is a group"),
    "a type": (lambda f, _: f.__setitem__("images_train", np.dtype("u1")), "is a datatype"),
    "strings": (images([b"a", b"b"]), r"expected numbers"),
    "text": (images(["a", "b"], dtype=h5py.string_dtype()), "expected numbers"),
    "records": (images(np.zeros(4, "u1,u1")), "expected numbers"),
    "complex": (images(np.zeros((4, 3, 8, 8), complex)), "expected numbers"),
    "nothing": (images(h5py.Empty("u1")), "expected numbers"),
    "no image": (images(np.zeros((0, 3, 8, 8), "u1")), "at least one"),
    "no side": (images(np.zeros((4, 3, 0, 0), "u1")), "at least one"),
    "a number": (images(3), "expected numbers from 0 to 255"),
    "never written": (images(shape=(10**6, 3, 10**3, 10**3), dtype="u1"), "declares"),
    "packed": (images(shape=(10**6, 3, 500, 500), dtype="u1", chunks=(1, 3, 500, 500), compression="gzip"), "declares"),
    "a huge chunk": (
        images(shape=(4, 3, 8, 8), dtype="u1", chunks=(10**4, 3, 80, 80), maxshape=(None,) * 4),
        "declares",
    ),
    "NaN": (images(np.full((4, 3, 8, 8), np.nan)), "expected 0 to 255"),
}


@pytest.mark.parametrize("case", STRANGE_SETS)
def test_strange_sets_are_one_line(case: str, tmp_path: Path) -> None:
    write, expected = STRANGE_SETS[case]
    with h5py.File(tmp_path / "set.h5", "w") as file:
        sound(file, without="images_train")
        write(file, tmp_path)
    with pytest.raises(DataError, match=rf"set\.h5.*{expected}") as error:
        h5.load(name="x", file=tmp_path / "set.h5", size=8, channels=3, num_classes=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [np.array([0, np.nan, 1, 1]), np.array([b"a"] * 4), np.zeros((4, 2)), np.array(1)])
def test_strange_labels_are_one_line(labels: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.h5", "w") as file:
        sound(file, without="labels_train")
        file["labels_train"] = labels
    with pytest.raises(DataError, match=r"set\.h5: labels_train .*expected numbers"):
        h5.load(name="x", file=tmp_path / "set.h5", size=8, channels=3, num_classes=2)


@pytest.mark.parametrize("kind", ["a pipe", "nothing", "half", "a folder"])
def test_what_is_no_hdf5_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        with h5py.File(path, "w") as file:
            sound(file)
        os.truncate(path, path.stat().st_size // 2 if kind == "half" else 0)
    with pytest.raises(DataError, match=r"set\.h5 is truncated, or no HDF5 file at all") as error:
        h5.load(name="x", file=path, size=8, channels=3, num_classes=2)
    assert "\n" not in str(error.value)


def test_a_packed_set_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.h5", "w") as file:
        sound(file, without="images_train")
        pixels = np.full((200, 3, 64, 64), 255, "u1")
        file.create_dataset("images_train", data=pixels[:4], compression="gzip")
    loaded = h5.load(name="x", file=tmp_path / "set.h5", size=8, channels=3, num_classes=2)
    assert loaded.train is not None
    assert len(loaded.train) == 4


def test_omegaconf_and_we_read_the_same_numbers(tmp_path: Path) -> None:
    text = "a: 1e-3\nb: [1, 2.5, 1_000]\nc: 0x10\nd: .inf\ne: '3'\nf: 1:30\n"
    (tmp_path / "c.yaml").write_text(text)
    assert read_yaml(tmp_path / "c.yaml") == OmegaConf.to_container(OmegaConf.load(tmp_path / "c.yaml"))
