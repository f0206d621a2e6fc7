"""What notebooks ask of a finished run: every number against a count by hand, every spoiled folder one clear line."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from omegaconf import OmegaConf
from PIL import Image

from kd_lightning import inspection
from kd_lightning.data.datasets.digits import load as load_digits
from kd_lightning.errors import UserError
from kd_lightning.networks import head_of


@pytest.fixture
def run(finished: Path) -> inspection.Finished:
    return inspection.open_run(finished)


@pytest.fixture
def spoiled(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder: Path, **changes: object) -> None:
    """Change single values of a run's composition."""
    path = folder / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(path)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    OmegaConf.save(cfg, path)


def test_a_run_gives_its_result_its_student_and_its_test_images(run: inspection.Finished) -> None:
    assert run.result["status"] == "ok"
    assert run.classes == [str(i) for i in range(10)]
    real, test = inspection.real_images(run), load_digits().test
    assert test is not None
    assert torch.equal(real.images, test.images)
    accuracy = (inspection.answers(run.student, real.images).argmax(1) == real.labels).float().mean()
    assert float(accuracy) == pytest.approx(run.result["metrics"]["test/accuracy"], abs=1e-6)


def test_answers_are_the_same_from_bytes_and_from_data_units(run: inspection.Finished) -> None:
    images = inspection.real_images(run).images[:20]
    torch.testing.assert_close(
        inspection.answers(run.student, images), inspection.answers(run.student, images.float() / 255)
    )


def test_the_newest_run_and_sweep_are_found_from_below(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(["sweeps/b/0", "sweeps/a/0", "x/old"]):
        shutil.copytree(finished, tmp_path / "runs" / name)
        for path in (tmp_path / "runs" / name / "result.json", (tmp_path / "runs" / name).parent):
            os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "x" / "failed").mkdir()
    (tmp_path / "runs" / "x" / "failed" / "result.json").write_text('{"format_version": 1, "status": "failed"}')
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert inspection.newest_run() == tmp_path / "runs" / "sweeps" / "b" / "0"
    assert inspection.newest_sweep() == tmp_path / "runs" / "sweeps" / "b"
    with pytest.raises(UserError, match="no finished run below"):
        inspection.newest_run(tmp_path / "deep")
    assert inspection.newest_sweep(tmp_path / "deep") == tmp_path / "deep"


def test_confusion_and_accuracy_by_class() -> None:
    counts = inspection.confusion(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 0]), 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    found = inspection.per_class_accuracy(counts).tolist()
    assert found[:2] == [pytest.approx(2 / 3), 1.0]
    assert math.isnan(found[2])


def test_the_surest_errors_come_first() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 9.0], [0.0, 1.0], [0.0, 5.0]])
    errors = inspection.confident_errors(logits, torch.tensor([0, 0, 0, 1]), most=5)
    assert errors.places.tolist() == [1, 2]
    assert errors.predicted.tolist() == [1, 1]
    assert errors.confidence.tolist() == [pytest.approx(1 / (1 + math.exp(-9))), pytest.approx(1 / (1 + math.exp(-1)))]
    assert inspection.confident_errors(logits, torch.tensor([0, 0, 0, 1]), most=1).places.tolist() == [1]


def test_calibration_of_a_case_by_hand() -> None:
    p = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    found = inspection.calibration(logits, torch.tensor([0, 0, 0, 1, 0, 1]), bins=10)
    assert found.number.tolist() == [2, 4]
    assert found.confidence.tolist() == [pytest.approx(0.6), pytest.approx(0.9)]
    assert found.accuracy.tolist() == [0.5, 0.75]
    assert found.ece == pytest.approx((2 * 0.1 + 4 * 0.15) / 6)


def test_a_sure_and_right_network_is_calibrated() -> None:
    found = inspection.calibration(torch.eye(3) * 100, torch.arange(3))
    assert found.ece == pytest.approx(0)
    assert found.number.tolist() == [3]


def test_features_are_what_the_head_turns_into_logits(run: inspection.Finished) -> None:
    images = inspection.real_images(run).images[:30]
    found = inspection.features(run.student, images, batch_size=7)
    head = run.student.get_submodule(head_of(run.student))
    torch.testing.assert_close(head(found).detach(), inspection.answers(run.student, images))
    assert not any(module._forward_pre_hooks for module in run.student.modules())


@pytest.mark.parametrize("how", ["pca", "tsne"])
def test_a_map_keeps_clusters_apart(how: str) -> None:
    far = torch.zeros(20, 6)
    far[10:, 2] = 50
    points = inspection.feature_map(far + torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), how=how)
    assert points.shape == (20, 2)
    a, b = points[:10], points[10:]
    between = np.linalg.norm(a.mean(0) - b.mean(0))
    assert between > 2 * max(a.std(), 1e-9) or between > 2 * b.std()


def test_a_map_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(UserError, match="no map 'umap': take pca or tsne"):
        inspection.feature_map(torch.rand(5, 2), how="umap")
    with pytest.raises(UserError, match="at least three points"):
        inspection.feature_map(torch.rand(2, 2))


def test_the_generator_is_the_one_that_training_left(run: inspection.Finished) -> None:
    generator = inspection.load_generator(run)
    kept = torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in generator.state_dict().items():
        assert torch.equal(value, kept[f"generator.{name}"])
    assert not any(p.requires_grad for p in generator.parameters())


def test_generated_images_depend_on_their_latents_alone(run: inspection.Finished) -> None:
    generator, z = inspection.load_generator(run), inspection.latents(run, 6)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    images = inspection.generate(generator, z)
    assert images.shape == (6, 1, 8, 8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert torch.equal(images, inspection.generate(generator, z))
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), "batch statistics must not move"
    alike = inspection.generate(generator, z[:1].repeat(6, 1))
    assert float(alike.std(0).max()) < 1e-5
    assert float(alike.flatten(1).std(1).min()) > 0.05, "a batch of one image is not standardised to nothing"


def test_latents_are_long_enough_and_repeat(run: inspection.Finished) -> None:
    assert inspection.latents(run, 3).shape == (3, 8)
    assert torch.equal(inspection.latents(run, 3, seed=1), inspection.latents(run, 3, seed=1))
    assert not torch.equal(inspection.latents(run, 3, seed=1), inspection.latents(run, 3, seed=2))


def test_interpolation_begins_and_ends_where_it_should_and_keeps_its_length() -> None:
    a, b = torch.randn(2, 64), torch.randn(2, 64)
    walk = inspection.interpolation(a, b, steps=5).view(2, 5, 64)
    torch.testing.assert_close(walk[:, 0], a)
    torch.testing.assert_close(walk[:, -1], b)
    assert float(walk[:, 2].norm(dim=1).min()) > 0.9 * float(torch.cat([a, b]).norm(dim=1).min())
    halfway = (a + b) / 2 / torch.cos(torch.acos(torch.cosine_similarity(a, b)) / 2)[:, None]
    torch.testing.assert_close(walk[:, 2], halfway)


def test_nearest_finds_the_image_itself_and_measures_pixels() -> None:
    real = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8)
    found = inspection.nearest(real[[7, 3]].float() / 255, real, k=2)
    assert found.places[:, 0].tolist() == [7, 3]
    assert float(found.distance[:, 0].max()) < 1e-3
    black, white = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert float(inspection.nearest(black, white).distance) == pytest.approx(1)


def test_class_counts_include_the_forgotten() -> None:
    assert inspection.class_counts(torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 0, 3]])).tolist() == [2, 0, 1]


def test_a_grid_is_white_between_its_images() -> None:
    picture = inspection.grid(torch.zeros(5, 1, 4, 4), columns=3, padding=1)
    assert picture.shape == (2 * 5 + 1, 3 * 5 + 1, 3)
    assert picture[0].min() == 1
    assert picture[1, 1].max() == 0
    same = inspection.grid(torch.full((1, 3, 4, 4), 51, dtype=torch.uint8), padding=0)
    np.testing.assert_allclose(same, 0.2, atol=1e-6)


def test_a_gallery_shows_every_image_under_its_caption() -> None:
    figure = inspection.gallery(torch.rand(5, 1, 4, 4), [f"c{i}" for i in range(5)], columns=3)
    assert [axes.get_title() for axes in figure.axes] == ["c0", "c1", "c2", "c3", "c4", ""]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1, 1, 0]


def test_captions_name_class_and_probability() -> None:
    assert inspection.captions(torch.tensor([[0.0, 50.0]]), ["ant", "bee"]) == ["bee 1.00"]


def test_curves_are_columns_without_their_gaps(run: inspection.Finished, tmp_path: Path) -> None:
    found = inspection.curves(run.folder)
    assert found["val/accuracy"].rounds.tolist() == [3, 7]
    assert not {"round", "seconds", "epoch"} & found.keys()
    (tmp_path / "metrics.csv").write_text("round,seconds,a,b\n0,0.5,1.0,\n1,1.0,,2.5\n")
    made = inspection.curves(tmp_path)
    assert (made["b"].rounds.tolist(), made["b"].seconds.tolist(), made["b"].values.tolist()) == ([1], [1.0], [2.5])
    (tmp_path / "metrics.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="holds no curves"):
        inspection.curves(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        inspection.curves(tmp_path / "none")


def test_a_table_of_many_runs(finished: Path) -> None:
    table = inspection.table([finished])
    assert len(table.rows) == 1
    assert "accuracy" in table.headers


def break_result(folder: Path) -> None:
    (folder / "result.json").write_text('{"format_version": 1, "sta')


def fail(folder: Path) -> None:
    (folder / "result.json").write_text('{"format_version": 1, "status": "failed", "reason": "the loss is NaN"}')


def age(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"format_version": 99}))


BAD_RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda f: shutil.rmtree(f), "there is no folder"),
    "no result": (lambda f: (f / "result.json").unlink(), r"has no result\.json"),
    "half a result": (break_result, "perhaps half-written"),
    "failed": (fail, "its run failed: the loss is NaN"),
    "another format": (age, "has format_version 99, this kd_lightning reads 1"),
    "no composition": (lambda f: shutil.rmtree(f / ".hydra"), r"config\.yaml cannot be read"),
    "half a composition": (
        lambda f: (f / ".hydra" / "config.yaml").write_text("a: [1"),
        r"config\.yaml cannot be read",
    ),
    "a list": (lambda f: (f / ".hydra" / "config.yaml").write_text("- a"), r"config\.yaml is no composition"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run_folders_are_one_line(case: str, spoiled: Path) -> None:
    spoil, expected = BAD_RUNS[case]
    spoil(spoiled)
    with pytest.raises(UserError, match=expected) as error:
        inspection.open_run(spoiled)
    assert "\n" not in str(error.value)


def drop_generator(folder: Path) -> None:
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("generator.")}
    torch.save(checkpoint, folder / "last.ckpt")


BAD_GENERATORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no generator": (lambda f: rewrite(f, method__generator=None), r"its method \(dafl\) has no generator"),
    "other widths": (
        lambda f: rewrite(f, method__generator__ngf=5),
        r"other widths: project\.weight is \(32, 8\), .* says \(40, 8\)",
    ),
    "another net": (
        lambda f: rewrite(f, method__generator__tail="sigmoid"),
        "holds another generator than its composition says: .* is only in the checkpoint",
    ),
    "cannot be built": (lambda f: rewrite(f, method__generator__size=9), "size must be a multiple of 4"),
    "another method": (drop_generator, "holds no generator: it is the checkpoint of another method"),
    "no checkpoint": (lambda f: (f / "last.ckpt").unlink(), r"last\.ckpt is missing"),
    "half a checkpoint": (lambda f: os.truncate(f / "last.ckpt", 5000), r"last\.ckpt cannot be read"),
    "no checkpoint at all": (lambda f: torch.save([1], f / "last.ckpt"), "is no checkpoint of kd_lightning"),
}


@pytest.mark.parametrize("case", BAD_GENERATORS)
def test_bad_generators_are_one_line(case: str, spoiled: Path) -> None:
    spoil, expected = BAD_GENERATORS[case]
    spoil(spoiled)
    with pytest.raises(UserError, match=expected) as error:
        inspection.load_generator(inspection.open_run(spoiled))
    assert "\n" not in str(error.value)


def test_a_composition_runs_no_foreign_code_unless_trusted(spoiled: Path, tmp_path: Path) -> None:
    touch = {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'touched'}"]}
    rewrite(spoiled, method__generator=touch, data__load=touch)
    run = inspection.open_run(spoiled)
    with pytest.raises(UserError, match=r"generator: os\.system is not on the allowlist; trust=True"):
        inspection.load_generator(run)
    with pytest.raises(UserError, match=r"data: os\.system is not on the allowlist; trust=True"):
        inspection.data_of(run)
    for target, expected in {
        "kd_lightning.data.datasets.folder.os.system": "not on the allowlist",
        "kd_lightning.data.datasets.files.load_it": "there is no kd_lightning.* here",
    }.items():
        rewrite(spoiled, data__load={"_target_": target})
        with pytest.raises(UserError, match=expected):
            inspection.data_of(inspection.open_run(spoiled))
    assert not (tmp_path / "touched").exists()


def test_data_that_are_not_here_say_where_they_were_looked_for(spoiled: Path, tmp_path: Path) -> None:
    folder = {"_target_": "kd_lightning.data.datasets.folder.load", "root": str(tmp_path / "gone"), "size": 8}
    path = spoiled / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(path)
    cfg.data.load = folder
    OmegaConf.save(cfg, path)
    with pytest.raises(UserError, match=f"no folder {tmp_path / 'gone'}"):
        inspection.data_of(inspection.open_run(spoiled))


def test_a_method_without_generator(tiny: Callable[..., Outcome], finished: Path) -> None:
    outcome = tiny("method=kd")
    shutil.copytree(finished / ".hydra", outcome.folder / ".hydra", dirs_exist_ok=True)
    with pytest.raises(UserError, match="it is the checkpoint of another method"):
        inspection.load_generator(inspection.open_run(outcome.folder))


@pytest.mark.parametrize("moved", [False, True])
def test_relative_paths_of_a_run_lead_to_its_data_from_anywhere(
    moved: bool, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = tmp_path / "project", tmp_path / "project" / "runs" / "one"
    shutil.copytree(finished, folder)
    for name in map(str, range(10)):
        (project / "mine" / "test" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(project / "mine" / "test" / name / "a.png")
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    load = {"_target_": "kd_lightning.data.datasets.folder.load", "root": "mine", "size": 8, "channels": 1}
    OmegaConf.update(cfg, "data.load", load, merge=False)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    started = {"hydra": {"runtime": {"cwd": str(project), "choices": {}}}}
    OmegaConf.save(OmegaConf.create(started), folder / ".hydra" / "hydra.yaml")
    if moved:
        project = project.rename(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    dataset = inspection.data_of(inspection.open_run(project / "runs" / "one"))
    assert dataset.test is not None
    assert int(dataset.test.images.max()) == 9
