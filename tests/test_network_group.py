"""A network stands once in ``network/``, and is a teacher and a student."""

from pathlib import Path

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kd_lightning.cli.main import chosen
from kd_lightning.config import resolvers
from kd_lightning.config.check import faults
from kd_lightning.config.overrides import jobs, loaded, members, read, swept
from kd_lightning.results.run_index import Run

MINE = (
    "_target_: kd_lightning.networks.classifiers.small.SmallConvNet\nwidths: [5, 6]\nnum_classes: ${data.num_classes}\n"
)


@pytest.fixture(autouse=True)
def _registered():
    resolvers.register()


@pytest.fixture
def my_conf(tmp_path):
    folder = tmp_path / "my_conf"
    for group in ("network/family", "experiment", "sweep"):
        (folder / group).mkdir(parents=True)
    (folder / "network" / "mine.yaml").write_text(MINE)
    (folder / "network" / "family" / "large.yaml").write_text("defaults: [/network/mine]\nwidths: [7, 8]\n")
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /teacher: family/large\n  - override /student: mine\n"
        "student: {grid: 2}\n"
    )
    (folder / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {teacher: 'mine,none', student: 'mine,lenet5'}}}\n"
    )
    return str(folder)


def networks(*overrides, folders=()):
    """Widths, or depths, of teacher and student."""
    found = read(overrides, folders)
    assert not found.problems
    return [net and (net.get("depth") or list(net.widths)) for net in (found.cfg.teacher.net, found.cfg.student)]


def names(*overrides, folders=()):
    with loaded(folders):
        found = chosen(compose("run", list(overrides), return_hydra_config=True).hydra.runtime.choices)
    return found["teacher"], found["student"]


def test_a_network_of_ones_own_is_a_teacher_and_a_student(my_conf):
    assert networks("teacher=mine", "student=mine", folders=[my_conf]) == [[5, 6], [5, 6]]
    assert networks("teacher=family/large", folders=[my_conf]) == [[7, 8], [8, 16, 32]]
    assert names("teacher=family/large", "student=mine", folders=[my_conf]) == ("family/large", "mine")


def test_an_experiment_names_them_and_the_command_line_others(my_conf):
    assert networks("experiment=mine", folders=[my_conf]) == [[7, 8], [5, 6]]
    assert networks("experiment=mine", "student=small_conv_tiny", folders=[my_conf]) == [[7, 8], [4, 8, 8]]
    assert networks("experiment=mine", "teacher=resnet20", folders=[my_conf]) == [20, [5, 6]]
    assert read(["experiment=mine", "student.grid=3"], [my_conf]).cfg.student.grid == 3


@pytest.mark.slow
def test_sweeps_mix_networks_with_other_teachers(my_conf):
    varied = swept(["sweep=mine"], [my_conf])
    each = [networks(*job, folders=[my_conf]) for job in jobs([*varied, "sweep=mine"])]
    assert each == [[[5, 6], [5, 6]], [[5, 6], [6, 16, 120, 84]], [None, [5, 6]], [None, [6, 16, 120, 84]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ("small_conv", "small_conv_narrow")),
        (("teacher=resnet34", "student=resnet18"), ("resnet34", "resnet18")),
        (("teacher=none", "method=supervised"), ("none", "small_conv_narrow")),
        (("experiment=cgan_kd/utkface",), ("regressor/vgg13", "regressor/resnet20")),
        (("teacher=network", "network@teacher.net=vgg8", "network@student=resnet8"), ("vgg8", "resnet8")),
        (("teacher=file", "network@teacher.net=lenet5"), ("lenet5", "small_conv_narrow")),
    ],
)
def test_results_call_them_by_their_names(overrides, expected):
    assert names(*overrides) == expected


def test_a_report_reads_the_student_that_no_override_names(tmp_path):
    with loaded():
        cfg = compose("run", ["problem=svhn"], return_hydra_config=True)
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(
        OmegaConf.create({"hydra": {"runtime": {"choices": cfg.hydra.runtime.choices}}}), tmp_path / ".hydra/hydra.yaml"
    )
    run = Run(tmp_path, {"problem": "svhn"}, {}, "ok")
    assert [run.setting("teacher"), run.setting("student")] == ["wrn_40_2", "wrn_16_1"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("student=resnet81", "student=resnet81: there is no student called resnet81; did you mean student=resnet8?"),
        ("teacher=htp", "teacher=htp: there is no teacher called htp; did you mean teacher=http?"),
        ("student=20", "student=20: expected the name of a student, got a value; did you mean student=resnet20?"),
        ("controls=null", "controls=null: expected the name of a member; for none of them type controls=none"),
        (
            "student=regressor/resnt20",
            "student=regressor/resnt20: there is no student called regressor/resnt20; did you mean "
            "student=regressor/resnet20?",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(override, problem):
    assert read([override]).problems == [problem]


def test_a_file_must_be_named():
    assert faults(read(["teacher=file", "method=kd"]).cfg) == ["teacher.file: required, give it with teacher.file=..."]


@pytest.mark.slow
def test_shapes_follow_the_size_of_the_images():
    def shape(*overrides):
        student = read(["student=resnet20", "teacher=vgg8", *overrides]).cfg.student
        return student.shortcut, student.stem, student.first_stride

    assert shape("data=cifar10") == ("A", "full", 1)
    assert shape("data=utkface") == ("B", "full", 2)
    assert shape("data=imagenet100") == ("B", "quarter", 1)
    assert shape("data=imagenet100", "data.size=64") == shape("data=utkface")
    assert shape("data=imagenet100", "data.network_size=32") == shape("data=tiny_imagenet") == shape("data=cifar10")
    assert shape("data=imagenet100", "student.stem=half") == ("B", "half", 1)
    assert list(read(["data=imagenet100", "teacher=vgg8"]).cfg.teacher.net.hidden) == [1024, 1024]


def test_a_size_that_is_none_is_said_once():
    assert [line.split(":")[0] for line in faults(read(["student=resnet20", "data.size=null"]).cfg)] == ["data.size"]


def test_batch_norm_is_a_setting_that_the_refusal_names():
    (fault,) = faults(read(["method=dfq"]).cfg)
    assert fault.endswith("set teacher.net.batch_norm=true, or choose a method that reads none, such as method=dafl")
    assert not faults(read(["method=dfq", "teacher.net.batch_norm=true"]).cfg)


def test_the_default_method_says_what_another_teacher_needs():
    def said(*overrides):
        return faults(read(["data=mnist", *overrides]).cfg)

    (fault,) = said("teacher=lenet5")
    assert "set teacher.net.batch_norm=true, or choose a method" in fault
    assert not said("teacher=lenet5", "teacher.net.batch_norm=true")
    assert fault.endswith(" method=dafl")
    assert not said("teacher=lenet5", "method=dafl")
    assert read([]).cfg.teacher.net.batch_norm, "that of the default run has it"


def test_other_programs_keep_their_own_words(tmp_path):
    """A program with a setting called ``student`` and a group ``network`` of its own."""
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "wide.yaml").write_text("w: 1\n")
    (tmp_path / "app.yaml").write_text("student: nobody\n")
    with loaded(config_path=str(tmp_path)):
        assert compose("app", ["student=wide"]) == {"student": "wide"}
        assert members("teacher") == members("student") == []
    assert not GlobalHydra.instance().is_initialized()


def test_none_stands_twice():
    conf = Path(resolvers.conf_dir())
    assert not (conf / "student").exists()
    teachers, networks = ({f.stem for f in (conf / group).iterdir()} for group in ("teacher", "network"))
    assert {"callable", "file", "http", "network", "none"} <= teachers
    assert not teachers & networks
