"""``kd-lightning explain`` says which file set a value."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from kd_lightning.cli.explain import main
from kd_lightning.config import resolvers
from kd_lightning.config.origins import origins
from kd_lightning.errors import ConfigError


@pytest.fixture(autouse=True)
def _registered() -> None:
    resolvers.register()


def told(
    *overrides: str, within: tuple[str, ...] = (), config_dirs: tuple[str, ...] = ()
) -> Mapping[str, tuple[str, str]]:
    return {key: (value, file) for key, value, file in origins(overrides, within, config_dirs)}


def test_every_kind_of_place_is_named() -> None:
    said = told("problem=mnist_bn", "method=dafl", "method.oh=0.5", "data={train: 100}")
    assert said["seed"] == ("0", "conf/run.yaml")
    assert said["data.size"] == ("32", "conf/data/mnist.yaml")
    assert said["teacher.net.widths"] == ("[6, 16, 120, 84]", "conf/network/lenet5.yaml")
    assert said["teacher.net.batch_norm"] == ("true", "conf/problem/mnist_bn.yaml")
    assert said["method.act"] == ("0.1", "conf/method/dafl.yaml")
    assert said["method.generator.channels"] == ("1  ${data.channels}", "conf/generator/upsampling.yaml")
    assert said["method.batch_size"] == ("128", "conf/recipe/dafl.yaml, mnist_small")
    assert said["method.oh"] == ("0.5", "command line")
    assert said["data.train"] == ("100", "command line")


def test_a_value_below_a_reference_is_that_of_the_node_it_was_copied_from() -> None:
    said = told("experiment=cgan_kd/mnist_small", within=("method",))
    assert said["method.optimizer.lr"] == ("0.001", "conf/recipe/cgan_kd.yaml, mnist_small")
    assert said["method.optimizer._partial_"] == ("true", "conf/data/mnist.yaml")
    assert said["method.scheduler"] == ("${data.recipe.scheduler}", "conf/method/cgan_kd.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        "experiment=skdcgn/wildlife_small",
        "experiment=fs_bbt/tiny_imagenet",
        "experiment=robustness/mnist_small",
        "sweep=seeds_all logger=wandb trainer=ddp debug=smoke",
        "method=kd data=utkface teacher=regressor/vgg8 student=regressor/resnet8",
        "method=skdcgn data=colored_mnist mask_operations=[noise,opacity]",
    ],
)
def test_nothing_is_left_without_a_file(row: str) -> None:
    said = told(*row.split())
    assert [key for key, (_, file) in said.items() if not file] == []
    assert not any(key.startswith("main.") for key in said)


def test_only_what_stands_below_the_keys_that_are_named() -> None:
    said = told("method=dafl", within=("data.recipe", "seed"))
    assert {key.split(".")[0] for key in said} == {"data", "seed"}
    assert all(key.startswith("data.recipe.") for key in said if key != "seed")


def test_files_of_ones_own_are_named_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "little.yaml"
    file.write_text("defaults: [digits]\nsize: 16\n")
    said = told("data=little", config_dirs=(str(tmp_path),))
    assert said["data.size"] == ("16", str(file))
    assert said["data.num_classes"] == ("10", "conf/data/digits.yaml")


@pytest.mark.slow
def test_the_command_prints_a_table_or_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    main(["trainer.max_epochs", "problem=mnist", "method=dafl"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["key", "value", "file"],
        ["trainer.max_epochs", "20", "conf/recipe/dafl.yaml,", "mnist_small"],
    ]
    for words, wrong in (("trainr", "trainr: there is no such setting"), ("method=dafk", "did you mean method=dafl?")):
        with pytest.raises(SystemExit):
            main([words])
        assert wrong in capsys.readouterr().err


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"methd\.lr"):
        origins(["methd.lr=1"])
