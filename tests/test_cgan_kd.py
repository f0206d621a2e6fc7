"""cGAN-KD from the command to the result: stages, pool, student and controls, of classes and of numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, composed, composition, tiny_run
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save_file

from kd_lightning.config.check import faults
from kd_lightning.config.requirements import pool_faults
from kd_lightning.core.log_filters import quiet
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.networks.generators import biggan
from kd_lightning.planning import dry_run as rehearsal
from kd_lightning.planning.dry_run import KEPT, MISSING, PROMISED, Step
from kd_lightning.planning.plan import Plan, plan
from kd_lightning.run.stages_and_controls import control_of

pytestmark = [  # of networks that have hardly learned
    pytest.mark.filterwarnings("ignore:.*source.strict=true makes that an error"),
    pytest.mark.filterwarnings("ignore:.*is no better than that of nokd"),
]

BRIEF = (
    *("features.trainer.max_epochs=1", "gan.trainer.max_epochs=1", "ratio.trainer.max_epochs=1"),
    *("source.per_label=30", "source.burn_in=50", "source.draw=50", "source.batch_size=320"),
)
CLASSES = ("method=cgan_kd", *BRIEF, "source.images=100")
NUMBERS = (
    *(
        "method=cgan_kd_regression",
        "data=rotated_digits",
        "data.base=digits",
        "data.size=8",
        *BRIEF,
        "source.images=50",
    ),
    *("data.train=640", "data.val=100", "data.test=200", "student=small_conv_tiny", "source.per_label=2"),
    *("images.trainer.max_epochs=2", "labels.trainer.max_epochs=2", "gan.source.rounds=2", "ratio.source.rounds=2"),
    *("gan.method.generator.widths=[16,8]", "gan.method.discriminator.widths=[8,16]", "source.processing=unprocessed"),
    "images.student.trunk.widths=[4,8]",
)


REAL = Split(torch.zeros(1000, 1, 16, 16, dtype=torch.uint8), torch.zeros(1000, dtype=torch.long))


def phases(store: Path) -> list[str]:
    return sorted(json.loads(file.read_text())["phase"] for file in store.glob("fit-*/fit.json"))


@pytest.mark.slow
def test_classes(tmp_path: Path, store: Path, teacher_file: Path) -> None:
    def run(folder: str, *overrides: str) -> Any:
        return tiny_run(tmp_path / folder, *CLASSES, f"teacher.weights={teacher_file}", *overrides)

    result = run("first")
    assert phases(store) == sorted(["nokd", "nokd_equal", "features", "gan", "ratio", "student"])  # each once
    (report,) = [r for f in store.glob("fit-*/fit.json") if (r := json.loads(f.read_text()))["phase"] == "student"]
    assert report["images_synthesised"] == 300
    assert report["pool"]["used"] == 100
    assert set(report["pool"]["gates"]) == {
        "acceptance_rate",
        "mean_ratio_of_made_images",
        "softplus_loss_held_out",
        "teacher_error_on_made_images",
    }
    for name, gate in report["pool"]["gates"].items():
        assert result["metrics"][f"gate/{name}"] == gate["value"]
    fits, pools = (len(list(store.glob(f"{kind}-*/artifact.json"))) for kind in ("fit", "pool"))
    for processing, more in (("subsampled", 0), ("replaced", 0), ("unprocessed", 1)):
        again = run(processing, f"source.processing={processing}")
        assert not again["stored"]
        fits, pools = fits + 1, pools + more
        assert len(list(store.glob("fit-*/artifact.json"))) == fits, "everything up to the pool is shared"
        assert len(list(store.glob("pool-*/artifact.json"))) == pools


@pytest.mark.slow
def test_numbers(tmp_path: Path, store: Path) -> None:
    result = tiny_run(tmp_path / "run", *NUMBERS, "controls=ceiling")
    before = ["teacher", "nokd", "images", "labels", "features", "gan", "ratio"]
    assert phases(store) == sorted([*before, "student", "nokd_equal", "ceiling"])
    assert 0 < result["metrics"]["ceiling/mae"] < 60
    assert 0 < result["metrics"]["test/mae"] < 60
    assert result["metrics"]["test/agreement"] is not None


def test_the_student_begins_as_the_one_of_the_real_images() -> None:
    cfg = composed("experiment=cgan_kd/mnist_small")
    assert cfg.init == "stage:nokd/student.safetensors"
    assert [stage.name for stage in cfg.stages] == ["nokd", "features", "gan", "ratio"]
    assert cfg.controls.nokd.init is None
    assert "init" not in cfg.controls.nokd_equal


def test_the_control_trains_for_as_many_updates_under_a_schedule_as_long() -> None:
    whole = composition("experiment=cgan_kd/mnist_small")
    dataset = Dataset("toy", ["a"], REAL, None, None, "none", "none")
    own = control_of(whole.controls["nokd_equal"], dataset, None, 50 * 62)
    assert own is not None
    assert own.trainer["max_epochs"] == round(50 * 62 / (1000 // 64))
    assert own.method["scheduler"]["T_max"] == own.trainer["max_epochs"]
    assert own.method["optimizer"]["lr"] == whole.method["optimizer"]["lr"]
    assert own.init == whole.init


def test_the_ceiling_has_real_images_in_the_place_of_the_made_ones() -> None:
    cfg = composed("experiment=cgan_kd/mnist_small", "controls=ceiling")
    whole = composition("experiment=cgan_kd/mnist_small", "controls=ceiling")
    own = whole.controls["ceiling"]
    assert own.source["load"]["train"] == cfg.data.train + cfg.source.images
    assert {**own.source["load"], "train": 1000} == {**whole.data.load.plain(), "_partial_": True}
    assert (own.init, own.trainer, own.method) == (whole.init, whole.trainer, whole.method)
    everything = composed("experiment=cgan_kd/mnist_small", "controls=ceiling", "data.train=null")
    with pytest.raises(OmegaConfBaseException, match="say how many"):
        OmegaConf.to_container(everything.controls, resolve=True)


@pytest.mark.slow
def test_no_control_asks_the_teacher_that_the_student_asks(tmp_path: Path, store: Path, teacher_file: Path) -> None:
    overrides = ("method=cgan_kd_blkd", *BRIEF, "source.images=100", f"teacher.weights={teacher_file}")
    result = tiny_run(tmp_path / "run", *overrides, "source.processing=unprocessed")
    assert result["metrics"]["nokd_equal/accuracy"] is not None
    reports = {r["phase"]: r for f in store.glob("fit-*/fit.json") if (r := json.loads(f.read_text()))}
    assert reports["student"]["teacher_images"] > 0
    assert reports["nokd_equal"]["teacher_images"] == reports["nokd"]["teacher_images"] == 0


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that try three rounds of each fit."""
    monkeypatch.setattr(rehearsal, "ROUNDS", 2)
    monkeypatch.setattr(rehearsal, "WARM", 1)


def planned(*overrides: str, promised: set[str] | None = None) -> Plan:
    quiet()
    method = dict(o.split("=", 1) for o in overrides)["method"]
    return plan(composition(*TINY, *overrides, names={"method": method, "data": "digits"}), promised)


def steps_of(made: Plan) -> dict[str, Step]:
    assert len(names := [step.name for step in made.steps]) == len(set(names))
    return {step.name: step for step in made.steps}


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_a_plan_names_the_pool_and_the_answers_that_the_run_makes(
    tmp_path: Path, store: Path, teacher_file: Path
) -> None:
    overrides, promised = (*CLASSES, f"teacher.weights={teacher_file}", "artifacts.root=" + str(store)), set[str]()
    made = planned(*overrides, promised=promised)
    assert not store.exists()
    steps = steps_of(made)
    assert list(steps) == [
        *("teacher", "nokd", "features", "gan", "ratio", "student's pool", "student's answers", "student"),
        *("nokd_equal", "test", "result"),
    ]
    assert steps["student's pool"].size == 300 * (64 + 8)
    assert steps["student's answers"].images == 300
    assert steps["student's pool"].seconds > 0  # type: ignore[operator]
    assert any("the generator is not there yet" in note for note in made.notes)

    result = tiny_run(tmp_path / "run", *overrides)
    kept = {path.parent.name for path in store.glob("*/artifact.json")}
    assert promised <= kept
    assert {name for name in kept if name.startswith(("fit", "pool", "labels"))} == promised
    reports = {r["phase"]: r for f in store.glob("fit-*/fit.json") if (r := json.loads(f.read_text()))}
    for phase, report in reports.items():
        assert steps[phase].rounds == report["rounds"], phase
    assert result["cost"]["teacher_images"] == 300

    assert {step.state for step in planned(*overrides).steps} == {KEPT}
    other = steps_of(planned(*overrides, "seed=1", "source.keep=0.5"))
    assert [name for name, step in other.items() if step.state == MISSING and step.of] == [
        *("nokd", "features", "gan", "ratio", "student's pool", "student's answers", "student", "nokd_equal"),
    ]
    variant = steps_of(planned(*overrides, "source.keep=0.5", promised=promised))
    assert [name for name, step in variant.items() if step.state == MISSING and step.of] == ["student"]


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_a_plan_counts_a_pool_that_a_closed_teacher_answers_once(store: Path, teacher_file: Path) -> None:
    overrides = (*CLASSES, f"teacher.weights={teacher_file}", "teacher.access=probs", "controls=none")
    promised = set[str]()
    made = planned(*overrides, "teacher.budget=299", promised=promised)
    assert steps_of(made)["student's answers"].images == 300
    assert any("NOT ENOUGH" in note and "300" in note for note in made.notes)
    again = planned(*overrides, "teacher.budget=300", "source.keep=0.5", promised=promised)
    assert steps_of(again)["student's answers"].images == 0
    assert steps_of(again)["student's pool"].state == PROMISED
    assert not any("NOT ENOUGH" in note for note in again.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_a_plan_of_numbers_judges_all_labels_by_one(store: Path) -> None:
    made = steps_of(planned(*NUMBERS, "source.processing=null", "source.labels=2000", "source.images=2500"))
    assert made["student's pool"].size == 4000 * (64 + 8)
    assert made["student's answers"].images == 4000
    assert made["student"].rounds == 2 * ((640 + 2500) // 320)


SMALL = "kd_lightning.networks.classifiers.small.SmallConvNet"
FILTER = f"{{net: {{_target_: {SMALL}, num_classes: 10, in_channels: 1, widths: [8, 8]}}"


@pytest.mark.slow
def test_the_filter_may_have_a_teacher_of_its_own(tmp_path: Path, store: Path, teacher_file: Path) -> None:
    """Trained once, whatever teacher the student has; what it has seen decides what is kept and how it is labelled."""
    made = {"num_classes": 10, "latent": 4, "channels": 1, "size": 8, "widths": 8}
    save_file(biggan.BigGanGenerator(**made).state_dict(), tmp_path / "generator.safetensors")
    settings = ", ".join(f"{k}: {v}" for k, v in made.items())
    run = ("method=supervised", "source=synthetic", "source.latent=4", "source.images=20", "source.per_label=10")
    run = (*run, "source.subsample=false", "source.ratio=null", "source.ratio_weights=null", "source.batch_size=320")
    run = (*run, f"source.generator={{_target_: kd_lightning.networks.generators.biggan.BigGanGenerator, {settings}}}")
    run = (*run, f"source.weights={tmp_path}/generator.safetensors", f"source.teacher={FILTER}}}")
    run = (*run, f"teacher.weights={teacher_file}")
    result = tiny_run(tmp_path / "run", *run)
    reports = {r["phase"]: r for f in store.glob("fit-*/fit.json") if (r := json.loads(f.read_text()))}
    assert "teacher" in reports, "the source's own was trained: the run's has a file"
    assert result["cost"]["seconds"]["source_teacher"] > 0
    assert reports["student"]["pool"]["used"] == 20
    told = {f.parent.name for f in store.glob("labels-*/artifact.json")}
    again = tiny_run(tmp_path / "again", *run, "seed=1")
    assert again["cost"]["seconds"]["source_teacher"] == result["cost"]["seconds"]["source_teacher"]
    assert {f.parent.name for f in store.glob("labels-*/artifact.json")} == told
    other = [o for o in run if not o.startswith("source.teacher")]
    tiny_run(tmp_path / "other", *other)
    assert len({f.parent.name for f in store.glob("labels-*/artifact.json")}) == len(told) + 1, "the run's own says"


def test_a_filters_teacher_is_checked_as_any_is() -> None:
    classes = f"source.teacher={FILTER.replace('num_classes: 10', 'num_classes: 7')}}}"
    assert "source.teacher.net.num_classes=7: the data has 10 classes" in faults(composed("method=cgan_kd", classes))
    assert "source.teacher.weights: there is no file nowhere.pt" in faults(
        composed("method=cgan_kd", f"source.teacher={FILTER}, weights: nowhere.pt}}")
    )


def test_more_images_than_the_filter_leaves_are_refused_before_anything_is_trained() -> None:
    pool = ("experiment=cgan_kd/mnist_small", "source.per_label=600", "source.keep=0.9")
    assert faults(composed(*pool, "source.images=5410")) == [
        "source.images=5410: takes 541 of each class, and at most 540 are left of source.per_label=600 by "
        "source.keep=0.9: raise source.per_label, or ask for fewer"
    ]
    whole = composition(*pool, "source.images=5400")

    def of(**settings: Any) -> str:
        return "".join(pool_faults(whole.derive(source=whole.source.replace(**settings))))

    assert of() == of(images=5410, processing="subsampled") == of(images=5410, per_label=602) == ""
    assert "takes 541 of each class, and at most 540 are left of" in of(images=5410)
    assert "takes 601 of each class, and at most 600 are left:" in of(images=6010, keep=None)
    numbers = composition("experiment=cgan_kd/rotated_digits_small", "source.images=100000", "source.per_label=2")
    assert not list(pool_faults(numbers))


@pytest.mark.parametrize(("row", "depth"), [("cifar100", 121), ("imagenet100", 161)])
@pytest.mark.parametrize("method", ["cgan_kd", "cgan_kd_blkd"])
def test_the_papers_filter_is_the_same_for_every_pair(row: str, depth: int, method: str) -> None:
    pair = ("teacher=resnet110", "student=resnet20") if row == "imagenet100" else ("teacher=resnet110",)
    cfg = composed(f"experiment=cgan_kd/{row}", f"method={method}", *pair)
    assert (cfg.source.teacher.net._target_.rpartition(".")[2], cfg.source.teacher.net.depth) == ("DenseNet", depth)
    assert cfg.teacher.net.depth == 110
