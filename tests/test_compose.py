"""Every file of the configuration composes and checks; what cannot run says so readably."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from kd_lightning.config import resolvers
from kd_lightning.config.check import check, faults
from kd_lightning.config.node import Node
from kd_lightning.config.overrides import loaded, members, read
from kd_lightning.config.resolvers import conf_dir
from kd_lightning.config.signatures import located
from kd_lightning.errors import ConfigError


@cache
def files(group):
    folder = conf_dir() / group
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


FOR_OTHERS = {("metrics", "generation"): "method=ce_gan", ("controls", "domains"): "experiment=uda_kd/digits"}
FOR_KD = (
    "problem=cifar100_pair",
    "problem=imagenet_pair",
    "problem=mnist_500",
    "stages=assistant",
    "stages=born_again",
    "sweep=classic",
)
MAPS = ("camvid", "cityscapes", "dense_digits", "nyuv2", "voc2012")
SEGMENTERS = ("teacher=small_segmenter", "student=small_segmenter_narrow")
TAKE_NUMBERS = {"kd", "supervised", "cgan_kd_regression"} | {
    *("ab", "at", "cc", "crd", "crd_kd", "fitnet", "fsp", "ft", "ickd", "l2"),  # those of features
    *("nst", "ofd", "pad", "pkt", "reviewkd", "rkd", "sp", "vid", "simkd", "hnd", "ghnd"),
}
DENSE = ("cwd", "dist_dense", "ktaad")
"""Methods of segmentation alone."""
OWN_STUDENTS = {"simkd": "reused", "hnd": "split", "ghnd": "split"}
"""Method -> the student that it goes with."""
OF_OTHERS = ("hydra", "generator", "recipe")  # members of which the files of other groups choose
GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name not in OF_OTHERS)
NEED_MORE = {
    "experiment": {"uda_kd/office31"},
    "data": {"file_names", "image_folder", "saved", "segmentation_folder", "table"},
    "teacher": {"callable", "exported", "file", "http", "huggingface", "onnx", "timm", "torchscript", "torchvision"},
    "sweep": {"optuna"},  # an extra
}
TARGETS = sorted(
    {target for file in conf_dir().rglob("*.yaml") for target in re.findall(r"_target_: ([\w.]+)", file.read_text())}
)


def one_of_each(family, members):
    """The first member of each family as a test of every suite, the others with ``-m slow``."""
    seen = {}
    firsts = [seen.setdefault(family(member), member) for member in members]
    return [
        member if member is first else pytest.param(*([member] if isinstance(member, str) else member), marks=SLOW)
        for member, first in zip(members, firsts, strict=True)
    ]


def architecture(name):
    return re.split(r"[\d_]", name)[0]


SLOW = pytest.mark.slow
AROUND = ("regressor", "reused", "split")
"""Networks that are made of another one."""


@pytest.fixture(autouse=True)
def _registered():
    resolvers.register()


def composed(*overrides):
    cfg, problems, unset = read(overrides)
    assert not problems
    assert not unset
    return cfg


def companions(group, name):
    """What a member needs beside it, because the defaults are for digits and a method without data."""
    if (group, name) == ("source", "synthetic"):
        return ["stages=biggan", "method=kd"]
    if (group, name) == ("controls", "ceiling"):
        return ["experiment=cgan_kd/mnist_small"]
    if group == "mask_operations" or (group, name) == ("metrics", "mechanisms"):  # nobody composes images by default
        return ["data=double_colored_mnist", "method=skdcgn"]
    if (group, name) in (("source", "labelled_and_unlabelled"), ("controls", "few_labels")):
        return ["method=ugan"]
    if (group, name) == ("source", "counterfactual"):
        return ["data=double_colored_mnist", "stages=skdcgn", "method=supervised"]
    if (group, name) == ("source", "drawn"):
        return ["data=double_colored_mnist", "stages=cgn", "method=skdcgn_im"]
    if (group, name) == ("stages", "generator"):
        return ["method=kd", "source=generated"]
    if group == "stages" and name.startswith("ccgan"):
        return ["data=rotated_digits", "data.size=64", "method=supervised"]
    if group == "source":
        own = ["method=dafl"] if name == "free" else ["method=kd", "method.label=0"]
        return [*own, *(["teacher.net.batch_norm=true"] if name == "deep_inversion" else [])]
    if (group, name) == ("method", "cgan_kd_regression"):
        return ["data=rotated_digits"]
    if (group, name) in (("data", "rotated_digits"), ("data", "utkface"), ("data", "steering_angle")):
        return ["method=kd"]
    if (group, name) == ("data", "two_digits"):
        return ["method=kd", "controls=none"]
    if (group, name) == ("teacher", "none"):
        return ["method=supervised"]
    if f"{group}={name}" in FOR_KD:
        return ["method=kd"]
    if (group, name) in FOR_OTHERS:
        return [FOR_OTHERS[group, name]]
    if group == "data" and name in MAPS:
        return [*SEGMENTERS, "method=kd"]
    if group == "method" and name in OWN_STUDENTS:
        return [f"student={OWN_STUDENTS[name]}"]
    if group == "method" and name in DENSE:
        return [*SEGMENTERS, "data=dense_digits"]
    if group in ("data", "scale", "teacher") or (group, name) == ("problem", "mnist"):
        return ["method=dafl"]  # the default method reads batch norms, which the default teacher has for digits only
    return ["teacher.net.batch_norm=true"] if group == "method" and reads_batch_norm(name) else []


def reads_batch_norm(method):
    """Whether a method, or the source that it brings along, needs a teacher with batch norm."""
    cfg = composed(f"method={method}")
    of_source = getattr(located(cfg.source._target_), "needs", ())
    method = Node.of(OmegaConf.to_container(cfg.method))
    assert method is not None
    return "teacher.batch_norm" in {*method.requirements(), *of_source}


def class_of(method):
    """The class that a method's file names, else the method itself."""
    found = re.search(r"^  _target_: (.*)", (conf_dir() / "method" / f"{method}.yaml").read_text(), re.MULTILINE)
    return found[1] if found else method


FIRSTS = {class_of(name): name for name in reversed(files("method"))}.values()


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (g, n) if n in (FIRSTS if g == "method" else files(g)[:2]) else pytest.param(g, n, marks=SLOW)
        for g in GROUPS
        if g not in ("experiment", "network")
        for n in files(g)
        if n not in NEED_MORE.get(g, ()) and not n.startswith("parts/")
    ],
)
def test_every_member_of_every_group_checks(group, name):
    # the method comes first: it chooses a source, which the member may then replace
    check(composed(*companions(group, name), f"{group}={name}"))


@pytest.mark.parametrize("name", one_of_each(architecture, [name for name in files("network") if name not in AROUND]))
def test_every_network_is_a_teacher_and_a_student(name):
    dense = "segmenters" in composed(f"student={name}").student._target_
    on = ("method=kd", "data=camvid") if dense else ("method=dafl", "data=cifar10")
    cfg = composed(*on, f"teacher={name}", f"student={name}")
    assert cfg.teacher.net == cfg.student
    check(cfg)


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v2_torchvision"])
def test_a_regressor_is_around_any_network(name):
    cfg = composed("data=utkface", "method=kd", f"teacher=regressor/{name}", f"student=regressor/{name}")
    assert cfg.teacher.net == cfg.student
    assert cfg.student.net == composed("data=utkface", "method=kd", f"student={name}").student
    check(cfg)


EXPERIMENTS = [name for name in files("experiment") if name not in NEED_MORE["experiment"]]


@pytest.mark.parametrize("name", one_of_each(lambda name: name.partition("/")[0], EXPERIMENTS))
def test_every_experiment_checks(name):
    check(composed(f"experiment={name}"))


@pytest.mark.parametrize("name", {name.partition("/")[0]: name for name in EXPERIMENTS}.values())
def test_an_experiment_of_each_paper_checks_with_another_method(name):
    few_labels = name.startswith("ugan/")  # of which most images have none
    check(composed(f"experiment={name}", f"method={'bad_gan' if few_labels else 'kd'}"))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "teacher"), [("digits", "none"), ("cifar10", "vgg8"), ("cifar10", "resnet34")])
@pytest.mark.parametrize("method", files("method"))
def test_every_method_data_and_teacher_checks_or_says_why_not(method, data, teacher):
    student = "small_conv_narrow" if teacher == "none" else OWN_STUDENTS.get(method, teacher)
    cfg = composed(f"method={method}", f"data={data}", f"teacher={teacher}", f"student={student}")
    lines = faults(cfg)
    if lines:
        with pytest.raises(ConfigError, match="this composition cannot run"):
            check(cfg)
        why = r"needs a teacher" if teacher == "none" else r"reads the teacher's batch-norm statistics"
        why += "|is made for numbers" if method == "cgan_kd_regression" else ""
        why += "|tells real images from generated ones" if "gan" in method else ""
        why += "|.*has no (net|projector|head)" if teacher == "none" else ""  # of the student that the method goes with
        if method in DENSE:
            assert any("is made for maps of classes, but" in line for line in lines)
            return
        assert all(re.match(rf"[\w.\[\]]+: (student: )?\w+ ({why})", line) for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("method", files("method"))
def test_every_method_takes_numbers_or_says_why_not(method):
    own = [f"student={OWN_STUDENTS[method]}"] if method in OWN_STUDENTS else []
    lines = faults(composed(f"method={method}", "data=rotated_digits", "teacher=resnet8", *own))
    takes = method in TAKE_NUMBERS
    assert bool(lines) != takes, lines
    if lines and method not in DENSE:
        assert "as it is set is made for classes" in lines[0]  # others may follow from it


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_imported(target):
    if target.startswith("hydra_plugins."):
        pytest.importorskip(target.rpartition(".")[0], reason="its launcher is an extra")
    assert callable(located(target))


def test_an_image_folder_counts_its_classes(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
    cfg = composed("data=image_folder", f"data.root={tmp_path}", "student=resnet8", "teacher=resnet14")
    check(cfg)
    assert cfg.student.num_classes == 3


def test_a_method_brings_its_source_along():
    assert composed("method=kd").source._target_.endswith("Real")
    assert composed("method=dafl").source._target_.endswith("Free")


@pytest.fixture
def my_conf(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "method" / "soft.yaml").write_text(
        "# @package _global_\ndefaults:\n  - kd\nmethod: {label: 0.0}\ntrainer: {max_epochs: 3}\n"
    )
    (tmp_path / "data" / "little.yaml").write_text(
        "defaults: [digits]\nrecipe: {epochs: 2}\n",
    )
    return tmp_path


def test_a_folder_of_the_users_own(my_conf):
    cfg, problems, unset = read(["method=soft", "data=little"], [str(my_conf)])
    assert not problems
    assert not unset
    check(cfg)
    assert (cfg.method.label, cfg.trainer.max_epochs, cfg.data.recipe.epochs) == (0.0, 3, 2)
    with loaded([str(my_conf)]):
        assert "soft" in members("method")
        assert "little" in members("data")


def test_the_users_folder_does_not_replace_ours(my_conf):
    (my_conf / "method" / "kd.yaml").write_text("# @package _global_\nmethod: {label: 0.7}\n")
    assert read(["method=kd"], [str(my_conf)]).cfg.method.label == 0.1


def test_reading_leaves_hydra_as_it_was():
    read(["method=kd"])
    read(["method=nothing"])
    assert not HydraConfig.initialized()
    with loaded():
        pass


def test_the_configuration_holds_values_only():
    for file in Path(conf_dir()).rglob("*.yaml"):
        for _ in yaml.safe_load_all(file.read_text()):
            pass
