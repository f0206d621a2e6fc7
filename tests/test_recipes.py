"""What a method needs on a data set is found, of the data, of its family, or of the method's family."""

from pathlib import Path

import pytest
import yaml
from conftest import composed
from hydra.core.global_hydra import GlobalHydra

from kd_lightning.config.check import check
from kd_lightning.config.overrides import loaded, read
from kd_lightning.config.resolvers import conf_dir

SCALES = ("small", "few_shot", "robustness", "paper")
FAMILIES = {"cifar": "svhn", "scenes": "voc2012"}
"""A family that is no data set -> a member of it."""
NEED_MORE = {
    **{m: ["teacher=resnet8"] for m in ("dfq", "cmi", "fast_dfkd", "deep_inversion", "adaptive_deep_inversion")},
    "nayer": ["teacher=lenet5", "teacher.net.batch_norm=true"],
    "fs_bbt": ["source=few_asked", "teacher.access=probs", "teacher.budget=100000"],
}
NETWORKS = [file.stem for file in (conf_dir() / "network").glob("*.yaml")]
SEGMENTERS = ("teacher=small_segmenter", "student=small_segmenter_narrow")


def recipes() -> list[tuple[str, str]]:
    files = sorted((conf_dir() / "recipe").glob("*.yaml"))
    return [(file.stem, name) for file in files for name in yaml.safe_load(file.read_text())]


def pulled_in_by(method: str, name: str) -> list[str]:
    scale = next(scale for scale in SCALES if name.endswith(scale))
    data = name.removesuffix(scale).rstrip("_") or "digits"
    if data in ("camvid", "dense_digits", "nyuv2", "scenes"):
        return [f"method={method}", f"data={FAMILIES.get(data, data)}", f"scale={scale}", *SEGMENTERS]
    own_teacher = next((name for name in NETWORKS if data.endswith(f"_{name}")), None)
    teacher = [f"teacher={own_teacher}"] if own_teacher else NEED_MORE.get(method, [])
    if data == "imagenet_resnet50":
        teacher += ["student=mobilenet_v1"]
    data = data.removesuffix(f"_{own_teacher}")
    own = {"cifar_small": "svhn", "cifar_paper": "cifar10"} if method not in ("deep_inversion",) else {}
    if method in ("adaptive_deep_inversion", "deep_inversion", "rdskd", "dafl"):
        own = dict.fromkeys(("cifar_small", "cifar_paper"), "cifar10")
    data = own.get(name, FAMILIES.get(data, data))
    return [f"method={method}", f"data={data}", f"scale={scale}", *teacher]


def test_every_recipe_is_chosen() -> None:
    with loaded():
        sources = GlobalHydra.instance().config_loader().get_sources()
        source = next(source for source in sources if source.scheme() == "kd-recipes")
        for method, name in recipes():
            typed = dict(override.split("=") for override in pulled_in_by(method, name))
            choices = "+".join(typed.get(key, "small_conv") for key in ("method", "data", "scale", "teacher"))
            assert source.load_config(f"recipe/{choices}").config.defaults == [f"/recipe/{method}/{name}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"), [r if i % 6 == 0 else pytest.param(*r, marks=pytest.mark.slow) for i, r in enumerate(recipes())]
)
def test_every_recipe_checks(method: str, name: str) -> None:
    # ZSKT compares attention maps of blocks, which only the paper's networks have
    networks = ("teacher=wrn_40_2", "student=wrn_16_1") if (method, name) == ("zskt", "cifar_paper") else ()
    check(composed(*pulled_in_by(method, name), *networks))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A method ``soft`` of the family of ``kd``, and data ``little`` of the family of ``tiny``."""
    for group in ("method", "data", "recipe"):
        (tmp_path / group).mkdir()
    (tmp_path / "method" / "soft.yaml").write_text("# @package _global_\n# @family kd\ndefaults: [kd]\n")
    (tmp_path / "data" / "little.yaml").write_text("# @family tiny\ndefaults: [digits]\n")
    return tmp_path


ORDER = [
    ("soft", "little_regressor_resnet8_small"),
    ("soft", "little_small"),
    ("soft", "tiny_regressor_resnet8_small"),
    ("soft", "tiny_small"),
    ("soft", "small"),
    ("kd", "little_small"),
    ("kd", "tiny_small"),
    ("kd", "small"),
]


def test_the_nearest_recipe_wins(mine: Path) -> None:
    typed = ["method=soft", "data=little", "teacher=regressor/resnet8"]
    for first in range(len(ORDER) + 1):
        for method in ("soft", "kd"):
            there = {name: {"trainer": {"max_epochs": i}} for i, (m, name) in enumerate(ORDER) if m == method}
            left = {name: node for name, node in there.items() if node["trainer"]["max_epochs"] >= first}
            (mine / "recipe" / f"{method}.yaml").write_text(yaml.safe_dump(left))
        found = read(typed, [str(mine)])
        assert not found.problems
        assert found.cfg.trainer.max_epochs == (first if first < len(ORDER) else found.cfg.data.recipe.epochs)


def test_a_recipe_may_build_on_others_and_be_a_file_of_its_own(mine: Path) -> None:
    (mine / "recipe" / "soft.yaml").write_text(
        "little_small:\n  defaults: [tiny_paper]\n  method: {label: 0.5}\ntiny_paper: {trainer: {max_epochs: 3}}\n"
    )
    cfg = read(["method=soft", "data=little"], [str(mine)]).cfg
    assert (cfg.method.label, cfg.trainer.max_epochs) == (0.5, 3)
    (mine / "recipe" / "soft").mkdir()
    (mine / "recipe" / "soft" / "tiny_few_shot.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 4}\n")
    assert read(["method=soft", "data=little", "scale=few_shot"], [str(mine)]).cfg.trainer.max_epochs == 4


def test_recipes_of_ones_own_stand_beside_ours(mine: Path) -> None:
    (mine / "recipe" / "dafl.yaml").write_text("little_small: {trainer: {max_epochs: 1}}\nmnist_small: {seed: 9}\n")
    assert read(["method=dafl", "data=little"], [str(mine)]).cfg.trainer.max_epochs == 1
    ours = read(["method=dafl", "data=mnist"], [str(mine)]).cfg
    assert (ours.seed, ours.trainer.max_epochs) == (0, 20), "files of a user's own do not replace ours"


def test_a_recipe_can_be_named_and_left_out() -> None:
    assert composed("method=dafl", "recipe=none").trainer.max_epochs == 200
    assert composed("method=dafl", "recipe=dafl/mnist_small").trainer.max_epochs == 20
    (problem,) = read(["method=dafl", "recipe=dafl/mnist_smal"]).problems
    assert problem.startswith(
        "recipe=dafl/mnist_smal: there is no recipe dafl/mnist_smal; there are dafl/digits_small, "
    )


def test_a_problem_is_small_unless_it_is_asked_for_the_papers_scale() -> None:
    small, paper = composed("problem=mnist", "method=dafl"), composed("problem=mnist", "method=dafl", "scale=paper")
    assert (small.method.batch_size, small.as_published, small.data.val) == (128, False, 5000)
    assert (paper.method.batch_size, paper.as_published, paper.data.val) == (512, True, 0)
    assert small.teacher.net == paper.teacher.net
    assert composed("problem=mnist", "scale=paper", "data.val=7").data.val == 7
