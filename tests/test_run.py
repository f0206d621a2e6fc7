"""A whole run, small: what it leaves, what it may touch, what it tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Outcome, composed, composition, tiny_run
from safetensors.torch import load_file, save_file
from torch import nn

from kd_lightning.config.composition import Training
from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import BudgetExceeded, UserError
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.run import teacher as obtain
from kd_lightning.run.run import run
from kd_lightning.run.stages_and_controls import weak_teacher
from kd_lightning.teachers.answer_types import Answer
from kd_lightning.teachers.black_box import QueryTeacher, to_bytes
from kd_lightning.teachers.budget.codec import keys_of
from kd_lightning.teachers.remote.local import LocalAsker

Tiny = Callable[..., Outcome]
QUERIED = ("method=kd", "source=queried", "teacher.access=label", "method.label=0.0")


def test_result_says_what_was_done(tiny: Tiny, store: Path) -> None:
    result = tiny("controls=digits")
    assert json.loads((result.folder / "result.json").read_text()) == result
    assert result["status"] == "ok"
    assert result["reason"] is None
    assert result["ended_by"] == {}
    assert {"system", "experiment", "method", "data", "seed", "versions", "git"} <= result.keys()
    assert set(result["metrics"]) == {
        *("test/accuracy", "test/agreement", "teacher/accuracy", "scratch/accuracy", "scratch/agreement"),
        *("noise/accuracy", "noise/agreement", "generated/agreement"),
    }
    assert all(0 <= value <= 1 for value in result["metrics"].values())
    cost = result["cost"]
    assert set(cost) == {"seconds", "teacher_images", "queries", "images_synthesised", "updates", "peak_memory_bytes"}
    assert set(cost["seconds"]) == {"data", "teacher", "student", "scratch", "noise", "test", "total"}
    assert (cost["teacher_images"], cost["images_synthesised"], cost["queries"]) == (128, 128, 0)
    assert cost["peak_memory_bytes"] > 1e6
    assert {"python", "torch", "lightning"} <= result["versions"].keys()
    left = {str(path.relative_to(result.folder)) for path in result.folder.rglob("*") if path.is_file()}
    assert left == {
        *("result.json", "student.safetensors", "student.json", "last.ckpt", "metrics.csv", ".hydra/config.yaml"),
        *(f"samples/{name}_000{epoch}.png" for name in ("generated", "classes") for epoch in (1, 2)),
        *("plots/confusion_labels.png", "plots/confusion_teacher.png", "curves.png"),
    }


def test_a_teacher_that_is_no_better_than_the_student_alone_is_a_word() -> None:
    ceiling = SimpleNamespace(asks=False, source={"load": {}})  # of other images
    nokd = SimpleNamespace(asks=False, source={})
    controls: Any = {"noise": SimpleNamespace(asks=True, source={}), "nokd": nokd, "ceiling": ceiling}
    classes, numbers = Classification(10), Regression(low=0.0, high=1.0, unit="metres")

    def said(task: Any, teacher: float | None, nokd: float | None) -> str | None:
        key = task.headline
        others = {f"noise/{key}": 0.9, f"ceiling/{key}": 0.9 if task is classes else 0.1}
        return weak_teacher(controls, {f"teacher/{key}": teacher, f"nokd/{key}": nokd, **others}, task)

    assert str(said(classes, 0.8, 0.8)).startswith("the teacher's accuracy, 0.8, is no better than that of nokd, 0.8,")
    assert said(classes, 0.8, 0.7) is None, "what learned from the teacher is no rival"
    assert said(numbers, 3.0, 4.0) is None
    assert "mae, 4, is no better than that of nokd, 3, which" in str(said(numbers, 4.0, 3.0))
    assert said(classes, None, 0.7) is said(classes, 0.5, None) is None


def test_same_command_reprints_what_is_stored(tiny: Tiny, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny()
    capsys.readouterr()
    again = tiny()
    assert "was run before: its stored result" in capsys.readouterr().out
    assert again["stored"]
    assert not first["stored"]
    assert {k: v for k, v in again.items() if k != "stored"} == {k: v for k, v in first.items() if k != "stored"}
    weights = [load_file(r.folder / "student.safetensors") for r in (first, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
def test_without_reuse_it_runs_anew_with_the_same_numbers(tiny: Tiny, store: Path) -> None:
    first = tiny()
    before = {p: p.stat().st_mtime_ns for p in store.glob("*/artifact.json")}
    anew = tiny("artifacts.reuse=false")
    assert not anew["stored"]
    assert anew["metrics"] == first["metrics"]
    after = {p: p.stat().st_mtime_ns for p in store.glob("*/artifact.json")}
    assert before.keys() == after.keys()
    assert all(before[p] < after[p] for p in before)


@pytest.mark.slow
def test_seed_and_settings_have_artefacts_of_their_own_and_share_the_teacher(tiny: Tiny, store: Path) -> None:
    for overrides in ((), ("seed=1",), ("method.ie=1.0",), ("trainer.max_epochs=1",)):
        assert not tiny(*overrides)["stored"]
    assert len(list(store.glob("run-*[0-9a-f]/result.json"))) == 4
    reports = [json.loads(path.read_text()) for path in store.glob("fit-*/fit.json")]
    assert sorted(report["phase"] for report in reports) == ["student"] * 4 + ["teacher"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "overrides"),
    [
        pytest.param("methods.data_free.dafl.Dafl", (), marks=pytest.mark.slow),
        pytest.param("sources.data_free.Free", (), marks=pytest.mark.slow),
        ("methods.real_data.distill.Distill", ("method=kd",)),
    ],
)
def test_a_raised_version_of_a_method_or_source_is_another_run(
    changed: str, overrides: tuple[str, ...], tiny: Tiny, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not tiny(*overrides)["stored"]
    monkeypatch.setattr(f"kd_lightning.{changed}.version", 17, raising=False)
    assert not tiny(*overrides)["stored"]
    assert tiny(*overrides)["stored"]


def test_a_failed_run_says_why(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        tiny("teacher.weights=none.pt")
    result = json.loads((tmp_path / "run0/result.json").read_text())
    assert result["status"] == "failed"
    assert "none.pt" in result["reason"]
    assert result["metrics"] == {}
    assert result["method"] == "dafl"


def test_a_bug_is_recorded_and_raised(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_lightning.methods.data_free.dafl.activation", lambda features: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny()
    result = json.loads((tmp_path / "run0/result.json").read_text())
    assert (result["status"], result["reason"]) == ("failed", "division by zero")


def test_data_free_means_free_of_data(tiny: Tiny, teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_lightning.data.datasets import digits

    real = digits.load
    one = tiny(f"teacher.weights={teacher_file}")

    def load(**settings: Any) -> Dataset:
        data = real(**settings)
        noise = torch.randint(0, 256, data.train.images.shape, dtype=torch.uint8)
        train = Split(noise, torch.randint(0, 10, data.train.labels.shape))
        return Dataset(**{**vars(data), "train": train})

    monkeypatch.setattr(digits, "load", load)
    other = tiny(f"teacher.weights={teacher_file}")
    assert not other["stored"]
    assert one["metrics"] == other["metrics"]
    a, b = (torch.load(r.folder / "last.ckpt", weights_only=True) for r in (one, other))
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    assert torch.equal(a["rng"][0]["rank"], b["rng"][0]["rank"])


@pytest.mark.parametrize("method", ["dafl", "kd"])
def test_the_teacher_stays_as_it_is(method: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    net = SmallConvNet(widths=(4, 8), batch_norm=True)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    file = tmp_path / "teacher.pt"
    torch.save(net.state_dict(), file)
    seen, modes = [], set()
    record = Distiller.record

    def watch(self: Distiller, **terms: Any) -> None:
        seen.append({k: v.clone() for k, v in self.teacher.net.state_dict().items()})
        modes.add((self.training, self.student.training, any(m.training for m in self.teacher.net.modules())))
        modes.add((any(p.grad is not None or p.requires_grad for p in self.teacher.net.parameters()),))
        record(self, **terms)

    monkeypatch.setattr(Distiller, "record", watch)
    result = tiny(
        f"method={method}", f"teacher.weights={file}", "teacher.net.widths=[4,8]", "teacher.net.batch_norm=true",
        "student.batch_norm=true",
    )  # fmt: skip
    assert modes == {(True, True, False), (False,)}
    wanted = Normalized(net, mean=[0.3053], std=[0.3761])
    load_weights(wanted, file)
    assert len(seen) >= 6
    assert all(torch.equal(v, wanted.state_dict()[k]) for k, v in seen[-1].items())
    checkpoint = torch.load(result.folder / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key]
    assert "student.net.features.1.running_mean" in checkpoint["state_dict"]
    owned = sum(len(group["params"]) for state in checkpoint["optimizer_states"] for group in state["param_groups"])
    assert owned == len([k for k in checkpoint["state_dict"] if k.endswith((".weight", ".bias"))])


@pytest.mark.slow
def test_without_data_agreement_is_measured_on_generated_images(tiny: Tiny, teacher_file: Path) -> None:
    result = tiny("data=none", "data.size=8", f"teacher.weights={teacher_file}")
    metrics = result["metrics"]
    assert metrics["test/accuracy"] is metrics["test/agreement"] is metrics["teacher/accuracy"] is None
    assert 0 <= metrics["generated/agreement"] <= 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the questions that teachers below white have answered, five hundred images at most."""
    sizes: list[int] = []
    ask = LocalAsker.ask

    def count(self: LocalAsker, images: np.ndarray) -> Sequence[Answer]:
        sizes.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(LocalAsker, "ask", count)
    monkeypatch.setattr(obtain, "AT_ONCE", 500)
    return sizes


def test_paid_answers_are_asked_for_once(tiny: Tiny, teacher_file: Path, asked: list[int]) -> None:
    runs = [
        tiny(*QUERIED, f"teacher.weights={teacher_file}", "source.images=600", f"seed={seed}", "teacher.budget=600")
        for seed in (0, 1)
    ]
    assert sum(asked) == 600
    for result, paid in zip(runs, (600, 0), strict=True):
        assert result["cost"]["queries"] == result["cost"]["teacher_images"] == 600
        training = result["cost"]["asking"]["training"]
        assert (training["used"], training["paid"], training["in_doubt"]) == (600, paid, 0)
        assert result["metrics"]["teacher/accuracy"] is None
        assert result["metrics"]["test/agreement"] is None
        assert result["metrics"]["test/accuracy"] is not None


def test_the_budget_is_that_of_a_run_with_all_its_stages(
    tmp_path: Path, store: Path, teacher_file: Path, asked: list[int]
) -> None:
    settings = (*TINY, *QUERIED, f"teacher.weights={teacher_file}", "source.images=400")
    settings += ("~method.scheduler", "+method.scheduler=null")

    def with_a_stage(*overrides: str) -> dict[str, Any]:
        """A run whose stage asks about 600 images before the student's fit asks about 400."""
        whole = composition(*settings, *overrides)
        own = {field.name: getattr(whole, field.name) for field in fields(Training)}
        first = Training(**own | {"source": whole.source.replace(images=600, seed=0)})
        return run(whole.derive(stages={"first": first}), tmp_path / "run")

    quiet()
    (tmp_path / "run").mkdir()
    result = with_a_stage("teacher.budget=600")
    assert (sum(asked), result["cost"]["queries"], result["cost"]["teacher_images"]) == (600, 600, 1000)
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=700 images: 600 asked, 2\d\d more wanted"):
        with_a_stage("source.seed=1", "teacher.budget=700")
    assert sum(asked) == 600


@pytest.mark.parametrize("paid_before", [False, True])
def test_nothing_is_asked_beyond_the_budget(
    paid_before: bool, tiny: Tiny, teacher_file: Path, asked: list[int]
) -> None:
    overrides = (*QUERIED, f"teacher.weights={teacher_file}", "source.images=600")
    if paid_before:
        tiny(*overrides)
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=599.*source\.images=N"):
        tiny(*overrides, "teacher.budget=599")
    assert sum(asked) == (600 if paid_before else 0)


def test_asking_in_every_step_stops_at_the_budget(tiny: Tiny, teacher_file: Path, asked: list[int]) -> None:
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=900 images: 640 asked, 320 more"):
        tiny("method=kd", "teacher.access=probs", f"teacher.weights={teacher_file}", "teacher.budget=900")
    assert sum(asked) == 640


def test_answers_bought_before_a_failure_are_kept(
    tiny: Tiny, teacher_file: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*QUERIED, f"teacher.weights={teacher_file}", "source.images=1100", "teacher.budget=1100")
    ask = LocalAsker.ask

    def fails(self: LocalAsker, images: np.ndarray) -> Sequence[Answer]:
        if len(asked) == 1:
            raise ConnectionError("the line is dead")
        return ask(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(LocalAsker, "ask", fails)
        with pytest.raises(ConnectionError):
            tiny(*overrides)
    result = tiny(*overrides)
    assert asked == [500, 500, 100]
    assert result["cost"]["queries"] == result["cost"]["asking"]["training"]["paid"] == 1100


@pytest.mark.parametrize(
    ("budget", "known", "used"),
    [
        pytest.param(0, False, 0, marks=pytest.mark.slow),
        (358, False, 270),
        pytest.param(359, True, 359, marks=pytest.mark.slow),
    ],
)
def test_measuring_a_closed_teacher_is_paid_for_once(
    budget: int, known: bool, used: int, tiny: Tiny, teacher_file: Path, asked: list[int]
) -> None:
    settings = (*QUERIED, f"teacher.weights={teacher_file}", f"teacher.eval_budget={budget}", "data.recipe.epochs=1")
    for seed in (0, 1):
        result = tiny(*settings, f"seed={seed}", "source.images=320")
        assert (result["metrics"]["teacher/accuracy"] is not None) == known
        assert (result["metrics"]["test/agreement"] is not None) == known
        assert result["teacher_metrics"] == ("paid" if known else None)
        assert result["cost"]["asking"]["evaluation"]["used"] == used  # validation's, where test's do not fit
    assert sum(asked) == 320 + used


@pytest.mark.parametrize("access", ["logits", "label"])
def test_what_a_method_gets_below_white(
    access: str, tiny: Tiny, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed, shown = [], []
    record, ask = Distiller.record, QueryTeacher.__call__

    def call(self: QueryTeacher, x: torch.Tensor) -> torch.Tensor:
        shown.append(x)
        return ask(self, x)

    monkeypatch.setattr(QueryTeacher, "__call__", call)
    monkeypatch.setattr(Distiller, "record", lambda self, **t: (handed.append(self.teacher), record(self, **t))[1])
    augment = f"data.recipe.augment=[{{_target_:{__name__}.blurred,_partial_:true}}]"
    result = tiny("method=kd", f"teacher.access={access}", f"teacher.weights={teacher_file}", augment)
    assert {type(teacher) for teacher in handed} == {QueryTeacher}
    assert not any(isinstance(value, nn.Module | torch.Tensor) for value in vars(handed[0]).values())
    assert not handed[0](torch.zeros(1, 1, 8, 8)).requires_grad
    assert (
        len({digest for x in shown for digest in keys_of(handed[0].described, to_bytes(x))}) - 1
        == result["cost"]["queries"]
    )
    assert all(torch.equal(x, (x * 255).round() / 255) for x in shown), "the student was shown the 8 bits asked about"
    assert not all(torch.equal(x, shown[0]) for x in shown)


def blurred(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Between the 8 bits."""
    return (x + x.roll(1, 3)) / 2


def test_a_reference_is_measured_without_being_asked(tiny: Tiny, teacher_file: Path, asked: list[int]) -> None:
    result = tiny(*QUERIED, f"teacher.weights={teacher_file}", f"teacher.reference={teacher_file}", "source.images=320")
    assert (sum(asked), result["teacher_metrics"]) == (320, "reference")
    assert result["metrics"]["teacher/accuracy"] > 0.9


def test_a_network_that_abstains_trains_on_the_rest(tiny: Tiny, teacher_file: Path) -> None:
    result = tiny(*QUERIED, f"teacher.weights={teacher_file}", "teacher.abstain_below=0.99")
    noted = result["answers"]["student"]["images"]
    assert 0 < noted["abstained"] < noted["asked"] == result["cost"]["queries"]
    assert noted["failed"] == 0


@pytest.mark.slow
def test_a_ledger_may_lie_elsewhere_and_a_larger_purse_goes_on(
    tiny: Tiny, teacher_file: Path, asked: list[int], tmp_path: Path, store: Path
) -> None:
    settings = (*QUERIED, f"teacher.weights={teacher_file}", "source.images=320")
    settings += (f"teacher.ledger={tmp_path}/all.sqlite",)
    with pytest.raises(
        BudgetExceeded, match=r"teacher\.total_budget=300 images of SmallConvNet-\w+ for all runs together"
    ):
        tiny(*settings, "teacher.total_budget=300")
    assert not tiny(*settings, "teacher.total_budget=320")["stored"]
    assert tiny(*settings, "teacher.total_budget=320")["stored"], "what is in the ledger does not make another run"
    assert sum(asked) == 320
    assert not (store / "ledger.sqlite").exists()


def test_nothing_is_paid_again_where_a_run_begins_anew(tiny: Tiny, teacher_file: Path, asked: list[int]) -> None:
    settings = (*QUERIED, f"teacher.weights={teacher_file}", "source.images=320", "teacher.budget=320")
    first, anew = tiny(*settings), tiny(*settings, "artifacts.reuse=false")
    assert sum(asked) == 320
    assert anew["metrics"] == first["metrics"]
    assert (anew["cost"]["queries"], anew["cost"]["asking"]["training"]["paid"]) == (320, 0)


def test_a_run_composes_without_a_teacher(tiny: Tiny) -> None:
    result = tiny("method=supervised", "teacher=none")
    assert result["metrics"].keys() == {"test/accuracy", "test/agreement"}
    assert result["cost"]["teacher_images"] == 0
    assert composed("method=supervised", "teacher=none").teacher.net is None


def test_tiny_runs_go_where_they_are_told(tmp_path: Path, store: Path) -> None:
    tiny_run(tmp_path / "here", "method=supervised", "teacher=none", root=tmp_path / "there")
    assert not store.exists()
    assert list((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_changed_weights_beside_the_store_are_another_fit(tiny: Any, store: Path, teacher_file: Path) -> None:
    beside = store.with_name(store.name + "2") / "w.safetensors"
    beside.parent.mkdir()
    shutil.copyfile(teacher_file, beside)
    command = ("method=supervised", "teacher=none", "student=small_conv", f"init={beside}")
    first = tiny(*command)
    state = load_file(beside)
    save_file({name: 0.5 * value for name, value in state.items()}, beside)
    second = tiny(*command)
    assert len([folder for folder in store.glob("fit-*") if folder.is_dir()]) == 2
    assert first["metrics"] != second["metrics"]


def test_a_store_that_may_not_be_written_serves_what_it_holds(
    tiny: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny("method=kd", "teacher=small_conv")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    for path in [*store.rglob("*"), store]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with monkeypatch.context() as patch:
        patch.setattr("kd_lightning.store.artifacts.FileLock", lambda *_: pytest.fail("locked"))
        second = tiny("method=kd", "teacher=small_conv")
    assert second["stored"]
    assert second["metrics"] == first["metrics"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert all(path.stat().st_mode & 0o200 for path in second.folder.rglob("*"))
    for path in [store, *store.rglob("*")]:
        path.chmod(0o755)


@pytest.mark.slow
def test_the_papers_number_stands_in_the_result_of_the_papers_setting_only(tiny: Callable[..., Outcome]) -> None:
    paper = "+paper.dafl={accuracy: 0.9}"
    assert tiny(paper)["paper"] == {}
    assert tiny(paper, "as_published=true")["paper"] == {"accuracy": 0.9}
