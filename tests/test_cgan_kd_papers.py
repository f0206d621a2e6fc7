"""cGAN-KD's published experiments, end to end on a handful of images in the sets' own layouts, with narrow networks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as tv
from conftest import Outcome, composition
from PIL import Image

from kd_lightning.core.log_filters import quiet
from kd_lightning.run.run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*source.strict=true makes that an error"),
    pytest.mark.filterwarnings("ignore:.*is no better than that of nokd"),
]

CONV = "kd_lightning.networks.label_embedding.ConvTrunk"
ONE_EPOCH = (
    *(f"{stage}.trainer.max_epochs=1" for stage in ("features", "gan", "ratio")),
    *("data.recipe.epochs=1", "trainer.accelerator=cpu", "teacher.check=false", "data.recipe.batch_size=32"),
    *(
        "source.batch_size=32",
        "features.source.batch_size=32",
        "gan.source.batch_size=32",
        "ratio.source.batch_size=32",
    ),
    *("ratio.method.ratio.widths=[16,16]", "gan.method.latent=8", "source.burn_in=8", "source.draw=8"),
)
CLASSES = (
    *(f"features.student.trunk._target_={CONV}", "+features.student.trunk.widths=[8,8,8]"),
    *("+features.student.trunk.size=${data.size}", "features.student.features=32", "features.student.hidden=[16]"),
)
NUMBERS = (
    *("images.trainer.max_epochs=1", "labels.trainer.max_epochs=1", "images.source.batch_size=32"),
    *(f"images.student.trunk._target_={CONV}", "+images.student.trunk.widths=[8,8,8]"),
    *("+images.student.trunk.size=${data.size}", "images.student.hidden=16", "images.student.embed=16"),
    *("labels.source.rounds=2", "gan.source.rounds=2", "ratio.source.rounds=2"),
    *("features.student.width=4", "features.student.features=32", "features.student.hidden=[16]"),
    *("gan.method.generator.widths=8", "gan.method.discriminator.widths=8"),
    *("teacher=regressor/resnet8x4", "student=regressor/wrn_16_1"),
)


@pytest.fixture
def small(tmp_path: Path, store: Path) -> Callable[..., Outcome]:
    """Runs an experiment on the images below ``tmp_path``."""

    def experiment(name: str, *overrides: str) -> Outcome:
        quiet()
        groups = [o for o in overrides if "." not in o.partition("=")[0]]
        names = {"data": name, "method": "cgan_kd"} | dict(o.split("=", 1) for o in groups)
        own = (f"experiment=cgan_kd/{name}", f"data.root={tmp_path}", *ONE_EPOCH, *overrides)
        (tmp_path / "run").mkdir()
        return Outcome(run(composition(*own, names=names), tmp_path / "run"))

    return experiment


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def reports(store: Path) -> dict[str, Any]:
    return {r["phase"]: r for f in store.glob("fit-*/fit.json") if (r := json.loads(f.read_text()))}


def of_classes(found: dict[str, Any], *, pool: int, used: int, rounds: int) -> None:
    assert set(found) == {"teacher", "nokd", "nokd_equal", "features", "gan", "ratio", "student"}
    assert found["student"]["images_synthesised"] == pool
    assert found["student"]["pool"]["used"] == used
    assert found["student"]["rounds"] == rounds


def of_numbers(found: dict[str, Any], *, pool: int, used: int, rounds: int) -> None:
    assert found.pop("images")["rounds"] > 0
    assert found.pop("labels")["rounds"] == 2
    of_classes(found, pool=pool, used=used, rounds=rounds)


def without_checksums(monkeypatch: pytest.MonkeyPatch, cls: Any) -> None:
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(cls, attribute, [[entry[0], None] for entry in getattr(cls, attribute)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})


def test_cifar100(tmp_path: Path, store: Path, small: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch, tv.CIFAR100)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n in (("train", 200), ("test", 100)):
        labels = [i % 100 for i in range(n)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels(n, 3072), "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine{i}" for i in range(100)]}))
    result = small(
        *("cifar100", *CLASSES, "teacher=resnet14", "student=resnet8"),
        *("gan.method.generator.widths=8", "gan.method.discriminator.widths=8", "gan.method.d_steps=2"),
        *("source.per_label=4", "source.images=200"),
    )
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    of_classes(reports(store), pool=400, used=200, rounds=400 // 32)


def test_imagenet100(tmp_path: Path, store: Path, small: Callable[..., Outcome]) -> None:
    for name in ("n01440764", "n01443537"):
        for i in range(40):
            file = tmp_path / "imagenet100" / "train" / name / f"{name}_{i}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(i + 1, 40, 36, 3)[0]).save(file)
    result = small(
        *("imagenet100", *CLASSES, "data.num_classes=2", "data.size=32", "data.test=10"),
        *("data.network_size=128", "teacher=resnet8x4", "student=resnet20"),
        *("~features.student.trunk.stem", "gan.method.generator.widths=8", "gan.method.discriminator.widths=8"),
        *("gan.method.generator.attention=16", "gan.method.discriminator.attention=16", "gan.method.accumulate=2"),
        *("source.per_label=20", "source.images=30"),
    )
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    of_classes(reports(store), pool=40, used=30, rounds=(70 + 30) // 32)


def test_utkface(tmp_path: Path, store: Path, small: Callable[..., Outcome]) -> None:
    folder = tmp_path / "UTKFace"
    folder.mkdir()
    for i in range(100):
        age = 1 + i % 10 * 6
        Image.fromarray(pixels(i + 1, 70, 66, 3)[0]).save(folder / f"{age}_{i % 2}_0_2017011618{i:04d}.jpg.chip.jpg")
    result = small(*("utkface", *NUMBERS, "source.per_label=6", "source.images=40"))
    assert 0 <= result["metrics"]["test/mae"] <= 60
    of_numbers(reports(store), pool=60, used=40, rounds=(80 + 40) // 32)


def test_steering_angle(tmp_path: Path, store: Path, small: Callable[..., Outcome]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "SteeringAngle_64x64_prop_0.8.h5", "w") as out:
        for part, n in (("train", 80), ("test", 20)):
            out.create_dataset(f"images_{part}", data=pixels(n, 3, 64, 64), compression="gzip")
            out.create_dataset(f"labels_{part}", data=np.linspace(-88.13, 97.92, n))
    result = small(*("steering_angle", *NUMBERS, "source.labels=30", "source.per_label=2", "source.images=40"))
    assert 0 <= result["metrics"]["test/mae"] <= 187
    of_numbers(reports(store), pool=60, used=40, rounds=(80 + 40) // 32)
