"""Several labels an image through the whole house: losses, metrics, data, checks, a run, and every command after it."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed, composition, tiny_run
from methods.toy import adam, trainer
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score
from torch import Tensor, nn

from kd_lightning.api import distill
from kd_lightning.cli import boundary, evaluate, export, predict
from kd_lightning.config.check import faults
from kd_lightning.core.multi_label import MeanAveragePrecision, MultiLabel, ranking_precision, told_labels
from kd_lightning.core.tasks import evaluate as measured
from kd_lightning.core.tasks import task_of
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets import digits, table, two_digits
from kd_lightning.data.datasets.in_memory import split_of
from kd_lightning.data.label_sets import set_names
from kd_lightning.data.load import dataset_digest
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.errors import ConfigError, DataError, TeacherError, UserError
from kd_lightning.losses.response import kl
from kd_lightning.losses.soft_labels import binary_kl, imitation
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.metrics.shortcomings import shortcomings
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.onnx_export import _onnx_metadata
from kd_lightning.results.run_loader import open_run
from kd_lightning.results.student_files import load_student
from kd_lightning.run.teacher_check import diagnose, recognise
from kd_lightning.teachers.access import malformed, told, usable
from kd_lightning.teachers.answer_types import Described, Probs
from kd_lightning.teachers.remote.function import Function
from kd_lightning.teachers.white_box import FrozenTeacher

DATA = ("data=two_digits", "data.train=400", "data.val=100", "data.test=100", "data.recipe.batch_size=50")


def some(n: int = 60, c: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=rng) * 3, (torch.rand(n, c, generator=rng) < 0.3).to(torch.uint8)


def test_map_is_the_mean_over_the_labels_that_some_image_has() -> None:
    output, labels = some()
    labels[:, 4] = 0
    expected = np.mean([average_precision_score(labels[:, i], output[:, i]) for i in range(4)])
    whole = measured(MultiLabel(5), output, labels, output)
    assert whole["map"] == pytest.approx(expected, abs=1e-5)
    assert whole["label_accuracy"] == pytest.approx(float(((output > 0) == labels.bool()).float().mean()))
    assert whole["agreement"] == 1.0
    metric = MeanAveragePrecision(5)
    for x, y in zip(output.split(7), labels.split(7), strict=True):  # some batches lie in [0, 1], the others do not
        metric.update(x, y)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-5)
    assert metric.each().isnan().tolist() == [False] * 4 + [True]


def test_large_logits_keep_their_order_and_a_nan_is_not_hidden() -> None:
    output, labels = torch.tensor([[20.0], [30.0], [40.0], [50.0]]), torch.tensor([[0], [0], [0], [1]])
    assert measured(MultiLabel(1), output, labels, None)["map"] == 1.0  # float32's sigmoid is 1 of all four
    output[0] = float("nan")
    assert np.isnan(measured(MultiLabel(1), output, labels, None)["map"])


def test_the_kd_loss_is_hintons_for_each_label() -> None:
    (s, _), (t, _) = some(), some(seed=1)
    s = s.requires_grad_()
    pairs = [torch.stack([z, torch.zeros_like(z)], -1).flatten(0, 1) for z in (s, t)]
    for temperature in (1.0, 4.0):
        loss = binary_kl(s, t, temperature=temperature)
        assert loss.item() == pytest.approx(kl(*pairs, temperature=temperature).item(), rel=1e-4)
        (gradient,) = torch.autograd.grad(loss, s)
        exact = temperature * ((s / temperature).sigmoid() - (t / temperature).sigmoid()) / s.numel()
        assert torch.allclose(gradient, exact, atol=1e-6)
    equal = binary_kl(s, s.detach())
    assert equal.item() == pytest.approx(0, abs=1e-7)
    assert float(torch.autograd.grad(equal, s)[0].abs().max()) < 1e-7
    assert binary_kl(torch.full((2, 3), 200.0), torch.full((2, 3), -200.0)).isfinite()
    assert torch.equal(imitation(s, t, several=True), binary_kl(s, t))
    assert not torch.equal(imitation(s, t), binary_kl(s, t))


def test_the_label_loss_is_a_mean_over_labels_and_images_of_one_shape() -> None:
    output, labels = some()
    p = output.double().sigmoid()
    slow = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert float(MultiLabel(5).loss(output, labels.long())) == pytest.approx(float(slow), rel=1e-5)
    with pytest.raises(ValueError, match=r"answers \(60, 5\) to these images, got \(60, 1\)"):
        MultiLabel(5).loss(output[:, :1], labels)


def test_the_precision_of_a_ranking_is_that_of_scikit_learn() -> None:
    output, labels = some()
    labels[0], labels[1] = 0, 1
    expected = label_ranking_average_precision_score(labels.numpy(), output.numpy())
    assert float(ranking_precision(output, labels).mean()) == pytest.approx(expected, abs=1e-5)


def test_a_task_is_read_back_and_part_of_what_data_are() -> None:
    task = task_of({"task": MultiLabel(3).described(), "classes": ["a", "b", "c"]})
    assert isinstance(task, MultiLabel)
    assert task.outputs == 3
    split = Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8))
    toy = Dataset("toy", ["a", "b"], split, None, None, "none", "raw", task=MultiLabel(2))
    assert len(dataset_digest(toy)) == 12
    with pytest.raises(DataError, match=r"toy/train: labels are \(2, 2\), expected \(N, 3\)"):
        Dataset("toy", ["a", "b", "c"], split, None, None, "none", "raw", task=MultiLabel(3))
    with pytest.raises(DataError, match="1 labels are neither 0 nor 1, such as 2"):
        MultiLabel(2).check_labels("toy", torch.tensor([[0, 2]]))


def test_two_digits_have_the_labels_of_both() -> None:
    data = two_digits.load(task=MultiLabel(10), train=300, val=0, test=50)
    assert data.train is not None
    assert data.val is None
    assert data.image_shape == (1, 8, 16)
    single = digits.load().train
    assert single is not None
    known = {tuple(x.flatten().tolist()): y for x, y in zip(single.images, single.labels.tolist(), strict=True)}
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        there = {known[tuple(half.flatten().tolist())] for half in image.split(8, dim=2)}
        assert set(label.nonzero().flatten().tolist()) == there
    both = {tuple(half.flatten().tolist()) for half in data.train.images[:, :, :, :8]}
    assert data.test is not None
    assert not both & {tuple(half.flatten().tolist()) for half in data.test.images[:, :, :, :8]}


REFUSED = {
    "method=dkd": r"method: Distill .*: use method=kd, supervised, or one that compares features",
    "source=noise": r"source: Noise .*: use source=real or queried",
    "student=small_segmenter_narrow": r"student: SmallSegmenter .*: choose .* such as student=small_conv",
    "metrics=boundary": r"metrics\.boundary: Boundary .*: use metrics=none",
    "teacher.access=topk": r"teacher\.access=topk: of several labels",
    "teacher.outputs=probabilities": r"teacher\.outputs=probabilities: several labels",
}


def refused(*settings: str) -> list[str]:
    return faults(composed("data=two_digits", "controls=none", *settings))


def test_what_is_made_for_one_label_is_refused_in_one_line_each() -> None:
    lines = refused(*REFUSED)
    for said in REFUSED.values():
        assert sum(bool(re.match(said, line)) for line in lines) == 1, said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bss", "crd", "dafl", "dml", "label_smoothing", "ugan", "zskd"])
def test_methods_of_one_label_are_refused(method: str) -> None:
    assert any(
        re.match(r"method: .* not made for several labels an image", line) for line in refused(f"method={method}")
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "fitnet", "rkd", "at", "sp", "vid", "reviewkd", "ofd", "ab"])
def test_what_goes_is_not_refused(method: str) -> None:
    assert not refused(f"method={method}")


def rows(folder: Path, header: str, *cells: str) -> Path:
    for i in range(len(cells)):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(folder / f"{i}.png")
    file = folder / "labels.csv"
    file.write_text("\n".join([header, *(f"{i}.png,{cell}" for i, cell in enumerate(cells))]))
    return file


def read(file: Path, names: int, **settings: Any) -> Dataset:
    return table.load(file=file, size=8, task=MultiLabel(names), val=0, test=0, **settings)


def test_a_column_holds_any_number_of_labels(tmp_path: Path) -> None:
    file = rows(tmp_path, "path,tags", "cat; dog", "", "dog", "ship;cat;")
    assert set_names(file, None, ";") == ["cat", "dog", "ship"]
    data = read(file, 3)
    assert data.train is not None
    assert data.train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert "3 labels, several an image: cat, dog, ship" in data.found
    with pytest.raises(DataError, match="row 5: the label ship is none of the 2: cat, dog"):
        read(file, 2, classes=["cat", "dog"])


def test_a_wrong_separator_is_not_a_name(tmp_path: Path) -> None:
    file = rows(tmp_path, "path,label", "cat|dog", "dog", "ship|cat")
    with pytest.raises(DataError, match=r"no cell of label holds data\.separator=';', and many hold '\|'"):
        set_names(file, None, ";")
    assert set_names(file, None, "|") == ["cat", "dog", "ship"]


def test_columns_hold_0_and_1(tmp_path: Path) -> None:
    file = rows(tmp_path, "path,dog,cat,weight", "0,1,7", "1,1,8", "0.0,True,9")
    data = read(file, 2, label_column=["dog", "cat"])
    assert data.classes == ["dog", "cat"]
    assert data.train is not None
    assert data.train.labels.tolist() == [[0, 1], [1, 1], [0, 1]]
    with pytest.raises(DataError, match="row 2: weight holds '7', expected 0 or 1"):
        read(file, 2, label_column=["dog", "weight"])
    with pytest.raises(DataError, match="no column bird"):
        read(file, 2, label_column=["dog", "bird"])


@pytest.mark.slow
def test_a_table_composes_and_several_columns_are_several_labels(tmp_path: Path) -> None:
    file = rows(tmp_path, "path,dog,cat", "0,1", "1,1", "0,1")
    settings = ["data=table", f"data.file={file}", "data.label_column=[dog,cat]", "method=kd", "controls=none"]
    data = composition(*settings, "data.labels=several").data
    assert data.num_classes == 2
    with pytest.raises(ConfigError, match=r"set data\.labels=several"):
        composition(*settings)
    with pytest.raises(ConfigError, match="expected classes, numbers or several"):
        composition("data.label_column=dog", "data.labels=many", *(s for s in settings if "label_column" not in s))


def test_probabilities_are_of_each_label() -> None:
    logits, _ = some()
    teacher = Described("t", "1", "probs", 5, several=True)
    answers = told(logits, "probs", several=True)
    assert torch.allclose(usable(answers, teacher), logits, atol=1e-3)
    assert malformed(Probs((0.9, 0.8, 0.7, 0.6, 0.5)), teacher) is None
    assert "not probabilities" in str(malformed(Probs((1.2, 0.8, 0.7, 0.6, 0.5)), teacher))
    assert "not probabilities" in str(malformed(Probs((0.9, 0.8, 0.7, 0.6, 0.5)), Described("t", "1", "probs", 5)))
    rounded = Described("t", "1", "probs", 5, decimals=2, several=True)
    assert usable([Probs((0.0, 1.0, 0.5, 0.5, 0.5))], rounded)[0, :2].tolist() == pytest.approx([-5.29, 5.29], abs=0.02)
    asked = Function(lambda images: [[0.9, 0.8]] * len(images), name="f", num_classes=2, access="probs")
    asked.expect_several()
    assert malformed(asked.ask(np.zeros((1, 2, 2, 1), np.uint8))[0], asked.describe()) is None


def columns(n: int, seed: int = 0) -> Split:
    """Images of which any of eight columns are bright, and which."""
    rng = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, 8, generator=rng) < 0.3).to(torch.uint8)
    x = torch.randint(0, 60, (n, 1, 8, 8), generator=rng) + 150 * labels[:, None, None, :]
    return Split(x.to(torch.uint8), labels)


class Columns(nn.Module):
    """Logits of the eight columns; ``order`` puts them elsewhere, ``told`` says them as probabilities."""

    def __init__(self, order: tuple[int, ...] = tuple(range(8)), *, told: bool = False) -> None:
        super().__init__()
        self.order, self.told = list(order), told

    def forward(self, x: Tensor) -> Tensor:
        logits = 20 * (x.mean((1, 2)) - 0.4)[:, self.order]
        return logits.sigmoid() if self.told else logits


def plain(net: nn.Module, **settings: Any) -> Normalized:
    return Normalized(net, mean=[0.0], std=[1.0], **settings)


@pytest.mark.parametrize(("sign", "solves"), [(1.0, True), (-1.0, False)])
def test_a_student_learns_which_labels_are_there_from_answers_alone(sign: float, solves: bool) -> None:
    torch.manual_seed(0)
    student, told = Normalized(SmallConvNet(num_classes=8, widths=(8, 16), grid=4), mean=[0.3], std=[0.3]), []

    def loss(s: Tensor, t: Tensor, *, several: bool) -> Tensor:
        told.append(several)
        return sign * imitation(s, t, temperature=2.0, several=several)

    method = Distill(
        student=student, teacher=FrozenTeacher(plain(Columns())), task=MultiLabel(8), label=0.0,
        terms={"response": {"weight": 1.0, "loss": loss}}, optimizer=partial(adam, lr=1e-2),
    )  # fmt: skip
    method.train()
    loader = TensorLoader(columns(256).images, None, batch_size=64, shuffle=True)
    trainer(8 if solves else 2).fit(method, Images(loader, None))
    unseen = columns(256, seed=1)
    with torch.no_grad():
        found = measured(MultiLabel(8), student.eval()(unseen.images.float() / 255), unseen.labels, None)
    assert (found["label_accuracy"] > 0.85) == solves, found
    assert all(told)


def test_a_sound_teacher_passes_and_others_are_told_why() -> None:
    split, task = columns(400), MultiLabel(8)
    assert diagnose(plain(Columns()), split, task=task) == 1.0
    with pytest.raises(TeacherError, match=r"ranks labels with a precision .* always naming the commonest labels"):
        diagnose(plain(Columns((3, 4, 5, 6, 7, 0, 1, 2))), split, task=task)
    with pytest.raises(TeacherError, match=r"as after a sigmoid.*set teacher\.outputs=sigmoid"):
        recognise(plain(Columns(told=True)), split.images, task)
    recognise(plain(Columns(told=True), outputs="sigmoid"), split.images, task)
    with pytest.raises(TeacherError, match=r"answers with logits .*set teacher\.outputs=logits"):
        recognise(plain(Columns(), outputs="sigmoid"), split.images, task)


def test_what_is_wrong_with_a_student_is_said() -> None:
    output, labels = some()
    labels[:, 1] = 0
    said = list(shortcomings(MultiLabel(5), output, labels, list("abcde")))
    assert said == ["no test image has the label b: left out of map, the mean over the other 4"]
    output[:, 2] = -1.0
    assert "the student never tells c, of which there are test images" in list(
        shortcomings(MultiLabel(5), output, labels, list("abcde"))
    )
    constant = list(shortcomings(MultiLabel(5), torch.ones(60, 5), labels, list("abcde")))
    assert constant[-1] == "the student is constant: it tells the same labels of every test image"
    told = told_labels(torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, -1.0]]), ["a", "b", "c"])
    assert [labels for labels, _ in told] == ["c;a", ""]


def test_arrays_of_0_and_1_are_several_labels_where_it_is_said() -> None:
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    for given in (labels, labels.astype(bool), labels.astype(np.float32)):
        split = split_of((images, given), (1, 8, 8), 2, what="train", several=True)
        assert split.labels.dtype == torch.uint8
        assert split.labels.tolist() == labels.tolist()
    with pytest.raises(UserError, match=r"labels='several' takes any number .* y\.argmax\(1\)"):
        split_of((images, labels), (1, 8, 8), 2, what="train")
    with pytest.raises(UserError, match="labels='several': expected 'classes', or 'several' for images of yours"):
        distill(Columns(), num_classes=8, image=(1, 8, 8), labels="several")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two digits, with the files that Hydra would have left."""
    folder, root = tmp_path_factory.mktemp("pairs") / "run", tmp_path_factory.mktemp("pairs_store")
    tiny_run(folder, "method=kd", *DATA, root=root)
    OmegaConf.save(OmegaConf.create(["method=kd", "seed=0"]), folder / ".hydra" / "overrides.yaml")
    choices = {"hydra": {"runtime": {"choices": {"method": "kd", "data": "two_digits"}}}}
    OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    return folder


def test_a_run_is_judged_by_map(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    metrics, task = result["metrics"], MultiLabel(10)
    test = two_digits.load(task=task, train=400, val=100, test=100).test
    assert test is not None
    with torch.no_grad():
        output = load_student(run)(test.images.float() / 255)
    assert metrics["test/map"] == pytest.approx(measured(task, output, test.labels, None)["map"], abs=1e-4)
    assert {"test/label_accuracy", "test/agreement", "teacher/map", "teacher/label_accuracy"} < metrics.keys()
    assert result["objective"] == metrics["test/map"]
    assert result["task"] == task.described()
    assert list(result["average_precision"]["test"]) == [str(d) for d in range(10)]
    assert {p.name for p in (run / "plots").iterdir()} == {"average_precision.png"}
    with (run / "metrics.csv").open() as file:
        assert {"val/map", "val/agreement", "train/label", "train/response"} <= set(next(csv.reader(file)))


def test_only_labels_that_are_there_are_printed_the_surest_first() -> None:
    told = predict.Prediction(Path("a.png"), "dog;cat", None, each=(0.7, 0.98, 0.4))
    assert predict._with_probabilities(told, ["cat", "dog", "cow"]) == "dog 0.980, cat 0.700"
    assert predict._with_probabilities(told._replace(each=(0.1, 0.2, 0.5)), ["cat", "dog", "cow"]) == "none"


def test_predictions_are_labels_and_the_probability_of_each(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = two_digits.load(task=MultiLabel(10), train=400, val=100, test=100).test
    assert test is not None
    for i in range(3):
        Image.fromarray(test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    assert predict.main([str(run), str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header == ["file", "labels", *map(str, range(10))]
    with torch.no_grad():
        p = load_student(run)(test.images[:3].float() / 255).sigmoid()
    assert torch.allclose(torch.tensor([[float(v) for v in line[2:]] for line in lines]), p, atol=1e-4)
    assert [set(line[1].split(";")) - {""} for line in lines] == [
        {str(i) for i in range(10) if row[i] > 0.5} for row in p
    ]
    capsys.readouterr()
    assert predict.main([str(run), str(tmp_path / "0.png")]) == 0
    assert capsys.readouterr().out.strip().endswith("0.png")


def test_what_comes_after_a_run_knows_several_labels(run: Path) -> None:
    student = load_student(run)
    found = evaluate.evaluate_on(student, evaluate.compose_data(list(DATA[:4]), student.card))
    assert found.metric == "map"
    assert found.score == pytest.approx(student.card["metrics"]["test/map"], abs=1e-4)
    assert sum(n for n, _ in found.parts.values()) > 100
    metadata = _onnx_metadata(student.card)
    assert "a sigmoid of each" in metadata["output"]
    assert json.loads(metadata["task"])["kind"] == "multi_label"
    with pytest.raises(UserError, match="its images have several labels"):
        open_run(run).classes  # noqa: B018
    with pytest.raises(UserError, match="the student says several labels an image, the labels of these data are class"):
        evaluate.evaluate_on(student, evaluate.compose_data(["data=digits"], student.card))


@pytest.mark.slow
def test_a_table_of_predictions_and_an_onnx_file_tell_every_label(tmp_path: Path) -> None:
    result = tiny_run(tmp_path / "run", "method=kd", "logger=wandb_offline", *DATA, root=tmp_path / "store")
    student, test = load_student(result.folder), two_digits.load(task=MultiLabel(10), train=400, val=100, test=100).test
    assert test is not None
    with torch.no_grad():
        logits = student(test.images.float() / 255)
    (table,) = result.folder.glob("wandb/*/files/media/table/test/predictions*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"] == ["image", "label", "student", "student confidence", "teacher", "teacher confidence"]
    assert len(rows["data"]) == 100
    for row, there, output in zip(rows["data"], test.labels, logits, strict=True):
        assert row[1] == ";".join(str(i) for i in range(10) if there[i])
        assert set(row[2].split(";")) == ({str(i) for i in range(10) if output[i] > 0} or {"none"})
    onnxruntime, file = pytest.importorskip("onnxruntime"), tmp_path / "student.onnx"
    assert export.main([str(result.folder), "--onnx", str(file)]) == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["output"] == "logits, a sigmoid of each is the probability of that label"
    assert json.loads(metadata["task"]) == {"kind": "multi_label", "num_classes": 10}
    (answers,) = session.run(None, {"images": (test.images[:7].float() / 255).numpy()})
    assert torch.allclose(torch.from_numpy(answers), logits[:7], atol=1e-4)


def test_walks_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.main([str(run)]) == 2
    assert "several labels" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_that_only_answers_tells_each_labels_probability(tmp_path: Path) -> None:
    asked = ("source=queried", "teacher.access=probs", "teacher.budget=400", "teacher.eval_budget=300")
    result = tiny_run(tmp_path / "run", "method=kd", *DATA, *asked, "method.label=0", root=tmp_path / "store")
    assert result["metrics"]["teacher/map"] is not None
    assert result["cost"]["queries"] == 400
    white = tiny_run(tmp_path / "white", "method=kd", *DATA, "method.label=0", root=tmp_path / "store")
    assert result["metrics"]["teacher/map"] == pytest.approx(white["metrics"]["teacher/map"], abs=1e-3)
