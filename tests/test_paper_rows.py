"""Rows of papers run what the papers ran: every value beside where it is from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd_lightning.config.check import faults

FLIP = "kd_lightning.data.augment.HorizontalFlip"
STAGES = ["net.layer1", "net.layer2", "net.layer3", "net.layer4"]

ROWS: dict[str, dict[str, Any]] = {
    # Fast-Datafree's scripts for ResNet-34, and for WRN-40-2
    "problem=cifar10 method=fast_dfkd scale=paper": {"method.oh": 0.5, "method.adv": 1.33, "method.bn": 10.0},
    "problem=cifar100 method=fast_dfkd scale=paper": {"method.oh": 0.5, "method.adv": 1.33},
    "problem=cifar10_wrn method=fast_dfkd scale=paper": {"method.oh": 0.4, "method.adv": 1.1},
    # DataFree's contrastive.py: what enters the four stages of ResNet-34; both views are mirrored
    "problem=cifar10 method=cmi scale=paper": {"method.features": STAGES, "method.local.1._target_": FLIP},
    "problem=cifar100 method=cmi scale=paper": {"method.features": STAGES, "method.local.1._target_": FLIP},
    "problem=cifar10_wrn method=cmi scale=paper": {"method.features": None, "method.local.1._target_": FLIP},
    "problem=svhn method=cmi scale=paper": {"method.local.1._target_": None},
    # DataFree's script for ResNet-34
    "problem=cifar100 method=dfq scale=paper": {"method.optimizer.lr": 0.05},
    "problem=cifar100_wrn method=dfq scale=paper": {"method.optimizer.lr": 0.1},
    # DAFL's code and README, whose entropy has base 10; those that were measured here keep theirs, in nats
    "problem=mnist method=dafl scale=paper": {
        "method.variant": "code",
        "method.oh": 1.0,
        "method.ie": 5.0,
        "method.act": 0.1,
    },
    "problem=cifar10 method=dafl scale=paper": {
        "method.variant": "code",
        "method.oh": 0.05,
        "method.ie": 5.0,
        "method.act": 0.01,
    },
    "problem=cifar100 method=dafl scale=paper": {
        "method.variant": "code",
        "method.oh": 0.5,
        "method.ie": 20.0,
        "method.act": 0.1,
    },
    "problem=cifar10_tiny method=dafl": {"method.variant": "code", "method.ie": 5.0},
    "problem=cifar100_tiny method=dafl": {"method.variant": "code", "method.ie": 20.0},
    "problem=mnist method=dafl": {"method.variant": "paper", "method.ie": 5.0},
    "problem=mnist method=mskd": {"method.variant": "paper", "method.ie": 5.0},
    "experiment=robustness/mnist_small method=dafl": {"method.variant": "paper", "method.ie": 5.0, "data.val": 5000},
    # a third party that quotes ZSKD's paper
    "problem=mnist method=zskd scale=paper": {"source.lr": 3.0, "source.batch_size": 512},
    "problem=cifar10 method=zskd scale=paper": {"source.lr": 1e-3, "source.batch_size": 64},
    # cGAN-KD's code: generators and ratios learn from mirrored images, never from crops; the auto-encoder and the ratio
    # of numbers from labels that are equally likely
    **{
        f"experiment=cgan_kd/{row}": {
            "gan.source.augment": [{"_target_": FLIP}],
            "ratio.source.augment": [{"_target_": FLIP}],
            "data.recipe.augment.1._target_": FLIP,
        }
        for row in ("cifar10", "cifar100", "imagenet100")
    },
    "experiment=cgan_kd/utkface": {
        "ratio.source.augment": [{"_target_": FLIP}],
        "features.source._target_": "kd_lightning.sources.vicinal.Vicinal",
        "features.source.augment": [{"_target_": FLIP}],
    },
    "experiment=cgan_kd/steering_angle": {
        "ratio.source.augment": [],
        "features.source._target_": "kd_lightning.sources.vicinal.Vicinal",
    },
    # FS-BBT's Keras networks: l2(1e-4) on convolutions, 1x1 shortcuts
    **{
        f"experiment=fs_bbt/{row}": {
            "method.optimizer.weight_decay": 2e-4,
            "teacher.fit.method.optimizer.weight_decay": 2e-4,
            "student.shortcut": "B",
            "teacher.net.shortcut": "B",
        }
        for row in ("cifar100", "tiny_imagenet")
    },
    # CE-GAN's and E-GAN's scripts for CIFAR-10
    "experiment=ce_gan/cifar10": {
        "source.batch_size": 96,
        "source.augment": [{"_target_": FLIP}],
        "method.d_steps": 3,
        "method.eval_size": 256,
        "method.population": 1,
        "method.crossovers": 1,
        "method.mutations": ["heuristic", "least_squares", "minimax"],
        "method.fitness": "logit",
        "method.penalty": 10.0,
        "method.draws": "two",
        "method.child_adam": "inherit",
        "method.mutation_grad": "raw",
        "method.optimizer_g.lr": 1e-4,
        "method.discriminator.norm": "batch",
        "data.val": 0,
    },
    "experiment=ce_gan/cifar10 method=e_gan": {
        "method.crossovers": 0,
        "method.fitness": "quality_diversity",
        "method.gamma": 0.01,
        "method.penalty": 0.0,
        "method.draws": "fresh",
        "method.optimizer_d.lr": 2e-4,
    },
    # SKDCGN's code for digits
    **{
        f"experiment=skdcgn/{row}": {
            "shape.source.pairs": 9900,
            "shape.method.generator.size": 64,
            "bg.method.generator.conv_dim": 32,
            "fg.method.generator.repeat": 5,
            "fg.method.discriminator.conv_dim": 32,
            "fg.method.alpha": [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1],
            "data.val": 0,
        }
        for row in ("colored", "double_colored", "wildlife")
    },
    "experiment=skdcgn/double_colored_small": {"shape.method.generator.size": 32, "shape.source.pairs": 5000},
}
"""What is typed: key: value. What is small stands here where its numbers were measured."""


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_settings_of_its_source(row: str) -> None:
    cfg = composed(*row.split())
    assert not faults(cfg)

    def at(key: str) -> Any:
        node: Any = cfg
        for part in key.split("."):
            if isinstance(node, list) or OmegaConf.is_list(node):
                node = node[int(part)] if int(part) < len(node) else None
            else:
                node = None if node is None else node[part]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node

    assert {key: at(key) for key in ROWS[row]} == ROWS[row]


NUMBERS: dict[str, dict[str, float | None]] = {
    "problem=cifar10 scale=paper": {
        "dafl": 0.9222,
        "dfad": 0.933,
        "zskt": None,
        "dfq": 0.9461,
        "cmi": None,
        "fast_dfkd": 0.9405,
    },
    "problem=cifar100 scale=paper": {
        "dafl": 0.7447,
        "dfad": 0.677,
        "zskt": None,
        "dfq": 0.7701,
        "cmi": None,
        "fast_dfkd": 0.7434,
    },
    "problem=cifar10_wrn scale=paper": {"dafl": None, "zskt": None, "dfq": 0.8614, "cmi": 0.8882, "fast_dfkd": 0.8929},
    "problem=cifar100_wrn scale=paper": {"dafl": None, "zskt": None, "dfq": 0.5477, "cmi": None, "fast_dfkd": 0.5402},
    "problem=mnist scale=paper": {"dafl": 0.982, "dfad": 0.983, "zskd": 0.9877},
}
"""None where the papers' number is of another setting: of a pool filled before, of other code."""


@pytest.mark.parametrize("row", NUMBERS)
def test_a_papers_number_stands_beside_what_the_paper_ran(row: str) -> None:
    cfg = composed(*row.split())
    assert {method: node["test/accuracy"] for method, node in cfg.paper.items()} == NUMBERS[row]
    assert cfg.as_published
    assert cfg.data.val == 0, "the papers' teachers saw all training images"
    small = composed(row.split()[0])
    assert not small.as_published
    assert small.data.val == 5000


def test_ages_are_compared_with_the_papers_as_the_papers_were_counted() -> None:
    cfg = composed("experiment=cgan_kd/utkface")
    task = instantiate(cfg.data.task)
    assert (
        {key for node in cfg.paper.values() for key in node}
        == {"test/mae_floored"}
        <= {f"test/{name}" for name in task.metrics()}
    )
    years = task.metrics()["mae_floored"]
    assert float(years(torch.tensor([[20.9 / 60]]), torch.tensor([20.0]))) == 0.0


@pytest.mark.parametrize(
    ("experiment", "parameters"), [("skdcgn/double_colored", 2_101_955), ("skdcgn/double_colored_small", 28_115)]
)
def test_a_students_mechanism_is_as_large_as_released(experiment: str, parameters: int) -> None:
    net = instantiate(composed(f"experiment={experiment}").shape.method.generator, _convert_="all")
    assert sum(p.numel() for p in net.parameters()) == parameters
    side = net.reduced or 32
    assert side == 32
    assert net(torch.zeros(2, net.latent), torch.arange(2)).shape == (2, 3, *([64, 64] if net.reduced else [32, 32]))


def test_the_networks_of_evolution_are_as_large_as_the_authors() -> None:
    """Widths of 128, 256 and 512: 4x4 convolutions with biases, batch norm on two layers of the discriminator."""
    method = composed("experiment=ce_gan/cifar10").method
    nets = [instantiate(method[name], _convert_="all") for name in ("generator", "discriminator")]
    g = 100 * 512 * 16 + 512 + 512 * 256 * 16 + 256 + 256 * 128 * 16 + 128 + 128 * 3 * 16 + 3
    d = 3 * 128 * 16 + 128 + 128 * 256 * 16 + 256 + 256 * 512 * 16 + 512 + 2 * (256 + 512) + 512 * 16 + 1
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [g, d]
    assert nets[0](torch.zeros(2, 100)).shape == (2, 3, 32, 32)
