import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from kd_lightning.config import resolvers
from kd_lightning.config.check import check, faults, key_of
from kd_lightning.config.overrides import jobs, read, swept
from kd_lightning.config.spelling import nearest
from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.distiller import Distiller


class ReadsBatchNorm(Distiller):
    """Like DeepInversion, without the method."""

    @classmethod
    def needs(cls, **settings):
        return {"teacher.gradients", "teacher.batch_norm", "source.images"}


class Careless(Distiller):
    @classmethod
    def needs(cls, **settings):
        return {1 / 0}


class Plain(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()


BARE = ["~method.label", "~method.terms", "~method.optimizer", "~method.scheduler", "controls=none"]
READS = [f"method._target_={__name__}.ReadsBatchNorm", *BARE]
KD = ["method=kd", "data=digits"]
DAFL = ["method=dafl", "data=digits"]
NUMBERS = ["method=kd", "data=rotated_digits", "controls=none"]


@pytest.fixture(autouse=True)
def _registered():
    resolvers.register()


def found(*overrides):
    composed = read(overrides)
    return composed.problems + faults(composed.cfg)


def only(*overrides):
    lines = found(*overrides)
    assert len(lines) == 1, lines
    return lines[0]


def test_the_default_has_no_fault():
    assert found() == []


ONE_FAULT = {
    "a member": (
        [*DAFL, "student=resnet21"],
        "student=resnet21: there is no student",
        "did you mean student=resnet20?",
    ),
    "a key of a class": ([*DAFL, "+method.lrr=1"], "method.lrr: Dafl has no", "method.optimizer.lr"),
    "a key typed": ([*DAFL, "method.lattent=1"], "method.lattent: Dafl has no", "did you mean method.latent?"),
    "a key of the teacher": ([*KD, "+teacher.acess=probs"], "teacher.acess: nothing", "did you mean teacher.access?"),
    "a key of a recipe": ([*KD, "+data.recipe.epoch=3"], "data.recipe.epoch: nothing", "data.recipe.epochs?"),
    "a key of another group": ([*KD, "lr=1"], "lr: nothing", "data.recipe.optimizer.lr"),
    "a key with keys of its own": (
        [*KD, "+teacher.train.trainer.max_epochs=1"],
        "teacher.train: nothing",
        "did you mean teacher.fit.trainer?",
    ),
    "a group": ([*KD, "studnt=lenet5"], "studnt: nothing", "did you mean student?"),
    "a key of an optimiser": (
        [*KD, "+data.recipe.optimizer.learning=1"],
        "data.recipe.optimizer.learning: AdamW has no",
        "lr",
    ),
    "a key of a loss": ([*KD, "+method.terms.response.loss.temprature=1"], "imitation has no", "temperature?"),
    "a key of a control": ([*DAFL, "+controls.noise.metod={}"], "controls.noise.metod", "controls.noise.method?"),
    "a seed": ([*KD, "seed=-1"], "seed=-1: expected a number from 0", "4294967295"),
    "a fit without an end": ([*KD, "trainer.max_epochs=-1"], "trainer.max_epochs=-1", "number of epochs"),
    "a key of hydra": ([*KD, "hydra.sweep.dirr=x"], "hydra.sweep.dirr: there is no", "did you mean hydra.sweep.dir?"),
    "missing": ([*KD, "data.recipe.epochs=???"], "data.recipe.epochs: required", "data.recipe.epochs=..."),
    "missing in a class": ([*DAFL, "source.rounds=???"], "source.rounds: required", "source.rounds=..."),
    "taken away": ([*DAFL, "~source.rounds"], "source.rounds: required by Free", "+source.rounds=..."),
    "text for a float": ([*DAFL, "method.oh=abc"], "method.oh: expected a number", "got 'abc'"),
    "null for an int": ([*DAFL, "method.latent=null"], "method.latent: expected a whole number", "got null"),
    "float for an int": ([*DAFL, "method.batch_size=1.5"], "method.batch_size: expected a whole number", "got 1.5"),
    "bool for an int": ([*DAFL, "source.rounds=true"], "source.rounds: expected a whole number", "got true"),
    "text for an object": ([*DAFL, "method.generator=big"], "method.generator: expected {_target_: ...}", "got 'big'"),
    "text for a factory": ([*KD, "method.optimizer=adam"], "method.optimizer: expected {_target_", "got 'adam'"),
    "one for a list": ([*KD, "student.widths=4"], "student.widths: expected a list", "got 4"),
    "an int of the run's own": ([*KD, "seed=x"], "seed: expected a whole number", "got 'x'"),
    "an access": ([*KD, "teacher.access=prob"], "teacher.access: expected one of white, logits", "got 'prob'"),
    "a precision": ([*KD, "trainer.precision=bff"], "trainer.precision: expected one of", "got 'bff'"),
    "the teacher's trainer": (
        [*KD, "+teacher.fit.trainer.max_epoch=3"],
        "teacher.fit.trainer.max_epoch",
        "teacher.fit.trainer.max_epochs?",
    ),
    "a reference": ([*KD, "method.label=${data.recipe.epochz}"], "method.label: ${data.recipe.epochz}", "epochs?"),
    "gradients": (
        [*DAFL, "teacher.access=probs"],
        "method: Dafl needs the teacher's gradients",
        "teacher.access=white",
    ),
    "a teacher": ([*KD, "teacher=none"], "method: Distill needs a teacher", "teacher=NAME"),
    "images": ([*KD, "source=free", "source.rounds=3"], "method: Distill trains on images", "source=real"),
    "labels": ([*KD, "source=noise", "controls=none"], "method: Distill trains on labels", "method.label=0"),
    "two streams": (
        ["method=ugan", "data=cifar10", "student=noisy_conv", "source=real"],
        "method: Ugan trains on labelled images beside images without labels",
        "source=labelled_and_unlabelled",
    ),
    "one stream": ([*KD, "source=labelled_and_unlabelled"], "method: Distill trains on images", "source=real"),
    "a student with batch norm": (
        ["method=bad_gan", "data=digits", "student=resnet8"],
        "student: Ugan tells real images from generated ones",
        "student=noisy_mlp",
    ),
    "no batch norm": (
        [*KD, *READS, "teacher=lenet5"],
        "method: ReadsBatchNorm reads the teacher's batch-norm statistics",
        "LeNet5",
    ),
    "classes": ([*KD, "student.num_classes=7"], "student.num_classes=7", "the data has 10 classes"),
    "the teacher's classes": ([*KD, "teacher.net.num_classes=7"], "teacher.net.num_classes=7", "has 10 classes"),
    "classes for numbers": (
        ["method=dafl", *NUMBERS[1:]],
        "method: Dafl as it is set is made for classes",
        "method=kd",
    ),
    "a loss for classes": (
        [*NUMBERS, "method.terms.response.loss._target_=kd_lightning.losses.response.kl"],
        "method: Distill as it is set is made for classes",
        "numbers",
    ),
    "few of each class": (
        [*NUMBERS, "source=few_shot"],
        "source: FewShot as it is set is made for classes",
        "source=real",
    ),
    "a population of one with a crossover": (
        ["method=ce_gan", "method.mutations=[minimax]"],
        "method.crossovers=1: a population of 1 with 1 mutation(s)",
        "set method.population=2 or more, or method.crossovers=0",
    ),
    "measures of a generator that there is not": (
        [*KD, "metrics=generation", "metrics.generation.latent=8"],
        "metrics.generation.generator: ${method.generator} refers to nothing",
        "",
    ),
    "a boundary between numbers": ([*NUMBERS, "metrics=boundary"], "metrics.boundary: Boundary as it", "numbers"),
    "numbers as probabilities": ([*NUMBERS, "teacher.access=probs"], "teacher.access=probs: a number", "logits"),
    "two numbers": ([*NUMBERS, "student.num_classes=2"], "student.num_classes=2: the labels are numbers", "one output"),
    "numbers for classes": ([*KD, "student=regressor/resnet20"], "student: Regressor is made for numbers", "classes"),
    "a range": ([*NUMBERS, "data.task.low=east"], "data.task.low: expected a number", "got 'east'"),
    "channels": ([*KD, "student.in_channels=3"], "student.in_channels=3", "the data has 1 channels"),
    "statistics": ([*KD, "data.mean=[0.1,0.2]"], "data.mean: 2 values", "1 channel"),
    "a class order of a teacher to train": (
        [*KD, "teacher.class_order=[1,0,2,3,4,5,6,7,8,9]"],
        "teacher.class_order: this teacher is trained here",
        "teacher.weights=FILE",
    ),
    "a class order": (
        [*KD, "teacher.class_order=[1,0]", "teacher.weights=own"],
        "teacher.class_order: 2 values",
        "10 classes",
    ),
    "max_steps": ([*KD, "trainer.max_steps=9"], "trainer.max_steps=9", "set trainer.max_epochs"),
    "clipping": ([*KD, "+trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1", "by hand"),
    "a file": ([*KD, "teacher.weights=gone.safetensors"], "teacher.weights", "no file gone.safetensors"),
    "a class": (
        [*DAFL, "method._target_=kd_lightning.methods.data_free.dafl.Daffl"],
        "method._target_: cannot import",
        "kd_lightning.methods.data_free.dafl.Dafl?",
    ),
    "a module": ([*KD, "student._target_=nets.Mine"], "student._target_: cannot import nets.Mine", "no module nets"),
    "unreadable": ([*KD, "teacher.weights=a=b"], "teacher.weights=a=b: not readable", """'teacher.weights="a=b"'"""),
    "no value": ([*KD, "foo"], "foo: expected key=value", ""),
    "nothing to delete": ([*KD, "~method.foo"], "~method.foo: there is nothing", "delete"),
    "a plus too many": (["+method=kd"], "+method=kd: method is there already", "without +"),
}


@pytest.mark.parametrize(("overrides", "what", "hint"), ONE_FAULT.values(), ids=ONE_FAULT)
def test_one_fault_is_one_line(overrides, what, hint):
    line = only(*overrides)
    assert what in line
    assert hint in line
    assert "\n" not in line


def test_all_faults_at_once():
    wrong = [
        "student=resnet21",
        "method.lrr=1",
        "+teacher.acess=probs",
        "method.oh=abc",
        "method.latent=null",
        "source.rounds=???",
        "teacher.access=probs",
        "student.num_classes=3",
        "trainer.max_steps=5",
        "init=gone.safetensors",
    ]
    lines = found(*DAFL, *wrong)
    expected = {override.lstrip("+").partition("=")[0] for override in wrong} - {"teacher.access"} | {"method"}
    assert sorted(key_of(line) for line in lines) == sorted(expected)


def test_the_error_holds_every_line():
    cfg = read([*DAFL, "teacher.access=probs", "student.num_classes=3"]).cfg
    with pytest.raises(ConfigError, match=r"(?s)cannot run:\n  .*student\.num_classes=3.*\n  .*method: Dafl"):
        check(cfg)


def test_a_value_used_in_many_places_is_named_once():
    assert key_of(only(*DAFL, "data.num_classes=ten")) == "data.num_classes"
    assert only("data=image_folder", "data.root=/nowhere").startswith("data.num_classes: no folder /nowhere")


def test_valid_but_unset_keys_are_told_apart():
    composed = read([*DAFL, "method.log_every=5", "method.lrr=1"])
    assert composed.unset == {"method.log_every": "method.log_every=5", "method.lrr": "method.lrr=1"}
    assert [key_of(line) for line in faults(composed.cfg)] == ["method.lrr"]


def test_a_teacher_with_batch_norm_or_without():
    assert found(*KD, *READS, "teacher=resnet8") == []
    plain = [f"teacher.net._target_={__name__}.Plain", "~teacher.net.widths"]
    assert "Plain" in only(*KD, *READS, *plain)


def test_what_is_not_a_method_or_a_source_is_said():
    lines = found(*KD, "method._target_=torch.nn.ReLU", "source._target_=torch.nn.ReLU")
    assert any(line.startswith("method._target_: ReLU is not a method") for line in lines)
    lines = found(*KD, "source._target_=torch.nn.Identity")
    assert any(line.startswith("source._target_: Identity is not a source") for line in lines)


def test_keys_of_the_users_own_may_be_referred_to():
    assert found(*KD, "+mine.weight=0.5", "method.label=${mine.weight}") == []
    assert key_of(only(*KD, "+mine.weight=0.5")) == "mine"


def test_controls_that_the_run_leaves_out_are_no_fault():
    assert found("method=supervised", "teacher=none", "controls=baselines") == []


def test_a_controls_own_composition_is_checked():
    line = only(*DAFL, "controls=baselines", "controls.noise.method.label=0.5")
    assert line.startswith("controls.noise.method: Distill trains on labels")


def test_a_bug_is_no_fault_of_the_user():
    with pytest.raises(ZeroDivisionError):
        found(*KD, f"method._target_={__name__}.Careless", *BARE)


def test_an_error_in_the_users_module_stays_one(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        found(*KD, "student._target_=broken_module.Net")


def test_automatic_precision_is_a_precision():
    assert found(*KD, "trainer.precision=auto") == []


def test_a_config_without_its_parts_is_explained():
    lines = faults(OmegaConf.create({"seed": 0, "data": {"size": 8}}))
    named = {key_of(line) for line in lines}
    assert {"method", "teacher", "trainer", "data.mean", "data.recipe"} <= named


def test_sweeps_are_read_job_by_job():
    assert jobs(["seed=0,1", "method=kd"]) == [["seed=0", "method=kd"], ["seed=1", "method=kd"]]
    assert jobs(["seed=range(0,2)", "a"]) == [["seed=0", "a"], ["seed=1", "a"]]
    assert jobs(["seed=interval(0,2)"]) == []
    assert swept(["seed=0,1"]) is None
    assert swept(["seed=0,1", "hydra.mode=MULTIRUN"]) == []


def test_the_nearest_is_near():
    assert nearest("resnet21", ["resnet8", "resnet20", "resnet32", "lenet5"]) == ["resnet20"]
    assert nearest("quux", ["resnet8", "lenet5"]) == []


@pytest.mark.slow
def test_broken_files_of_the_users_own_are_named(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    (tmp_path / "method" / "broken.yaml").write_text("a: [1\nb: {\n")
    (tmp_path / "experiment" / "mine" / "a.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /method: kdd\n"
    )
    lines = read(["method=broken"], [str(tmp_path)]).problems
    assert len(lines) == 1
    assert "broken.yaml, line 2" in lines[0]
    lines = read(["experiment=mine/a"], [str(tmp_path)]).problems
    assert lines == ["experiment=mine/a: it asks for method=kdd, and there is no such method; did you mean method=kd?"]
    lines = read(["experiment=mine/b"], [str(tmp_path)]).problems
    assert lines == ["experiment=mine/b: there is no experiment called mine/b; did you mean experiment=mine/a?"]
    with pytest.raises(ConfigError, match="there is no such folder"):
        read([], [str(tmp_path / "gone")])


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "there is no GPU" in only(*KD, "trainer.accelerator=gpu")
