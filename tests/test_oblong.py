"""Images need not be square: height and width are free wherever a network can take or make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image
from torch import nn

import kd_lightning
from kd_lightning.cli import predict
from kd_lightning.data.datasets import folder as folders
from kd_lightning.data.datasets import image_files
from kd_lightning.errors import UserError
from kd_lightning.networks.classifiers.noisy import NoisyMlp
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.classifiers.two_conv import TwoConvNet
from kd_lightning.networks.generators.biggan import BigGanGenerator
from kd_lightning.networks.generators.cgn import CgnGenerator, ConvDiscriminator, LinearDiscriminator
from kd_lightning.networks.generators.cvae import ConvDecoder, ConvEncoder, MlpDecoder, MlpEncoder
from kd_lightning.networks.generators.pairs import ConvPairs, DeconvImages, MlpImages, MlpPairs
from kd_lightning.networks.generators.plain_gans import (
    DcganDiscriminator,
    DcganGenerator,
    LinearCritic,
    LinearGenerator,
)
from kd_lightning.networks.label_embedding import ConvTrunk
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.student_files import load_student, save_student

SIZE = (32, 96)
Y = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearGenerator(latent=4, size=SIZE)(torch.randn(2, 4)),
        lambda: DcganGenerator(latent=4, channels=1, size=SIZE, ngf=4)(torch.randn(2, 4)),
        lambda: MlpDecoder(size=SIZE, latent=4)(torch.randn(2, 4), Y),
        lambda: ConvDecoder(size=SIZE, channels=1, widths=(4, 4, 4), latent=4)(torch.randn(2, 4), Y),
        lambda: MlpImages(latent=4, size=SIZE, hidden=(8,))(torch.randn(2, 4), Y),
        lambda: DeconvImages(latent=4, channels=1, size=SIZE, hidden=(8, 8, 8))(torch.randn(2, 4), Y),
    ],
    ids=["linear", "dcgan", "mlp decoder", "conv decoder", "mlp images", "deconv images"],
)
def test_generators_make_oblong_images(make: Callable[[], torch.Tensor]) -> None:
    assert make().shape == (2, 1, *SIZE)


@pytest.mark.parametrize(
    ("net", "labelled"),
    [
        (LinearCritic(size=SIZE), False),
        (DcganDiscriminator(channels=1, size=SIZE, ndf=4), False),
        (MlpEncoder(size=SIZE), True),
        (ConvEncoder(size=SIZE, channels=1, widths=(4, 4, 4)), True),
        (MlpPairs(size=SIZE, widths=(8,)), True),
        (ConvPairs(channels=1, size=SIZE, widths=(4, 4)), True),
        (ConvDiscriminator(channels=1, size=SIZE, ndf=4), True),
        (LinearDiscriminator(channels=1, size=SIZE, ndf=4), True),
        (TwoConvNet(size=SIZE, width=4), False),
        (NoisyMlp(size=SIZE, widths=(8,)), False),
        (ConvTrunk(size=SIZE), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_networks_take_oblong_images(net: nn.Module, labelled: bool) -> None:
    answers = net.eval()(torch.rand(2, 1, *SIZE), *([Y] if labelled else []))
    first = answers[0] if isinstance(answers, tuple) else answers
    assert len(first) == 2
    if isinstance(net, ConvTrunk):
        assert first.shape == (2, net.features)


@pytest.mark.parametrize("net", [CgnGenerator, partial(BigGanGenerator, num_classes=2)], ids=["cgn", "biggan"])
def test_those_for_squares_say_so_in_one_line(net: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"is for square images, got 32x96: set data\.size to one number"):
        net(size=SIZE)


def test_networks_are_shaped_for_the_shorter_side() -> None:
    chosen = composed("data.size=[64,200]", "method=adaptive_deep_inversion", "student=wrn_16_1")
    assert chosen.student.stem == "half"
    assert chosen.method.image == [1, 64, 200]


@pytest.fixture
def oblong(tmp_path: Path) -> Path:
    """A student of images of 24x96."""
    net = Normalized(SmallConvNet(widths=(4, 8, 16), num_classes=2), mean=[0.5], std=[0.5])
    node = {"_target_": f"{SmallConvNet.__module__}.SmallConvNet", "widths": [4, 8, 16], "num_classes": 2}
    card = {"network": node, "classes": ["a", "b"], "image_shape": [1, 24, 96], "mean": [0.5], "std": [0.5]}
    (tmp_path / "oblong").mkdir()
    save_student(net, tmp_path / "oblong", card)
    return tmp_path / "oblong"


def test_a_student_of_oblong_images_sees_them_whole(oblong: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "line.png")
    student = load_student(oblong)
    (said,) = predict.predictions(student, [tmp_path / "line.png"])
    whole = student(torch.from_numpy(pixels)[None, None].float() / 255).detach().softmax(1)
    assert said.confidence == pytest.approx(float(whole.max()), abs=1e-5)
    student.card["resize"] = "stretch"
    Image.fromarray(pixels).resize((50, 50)).save(tmp_path / "square.png")
    (said,) = predict.predictions(student, [tmp_path / "square.png"])
    drawn = image_files.decode(tmp_path / "square.png", size=[24, 96], channels=1, resize="stretch")
    stretched = student(torch.from_numpy(drawn)[None].float() / 255).detach().softmax(1)
    assert said.confidence == pytest.approx(float(stretched.max()), abs=1e-5)
    student.resize = True
    assert student(torch.rand(2, 1, 12, 12)).shape == (2, 2)


def test_a_folder_is_cut_to_height_and_width(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (300, 30), 80 * i).save(tmp_path / "set" / name / f"{i}.png")
    dataset = folders.load(root=tmp_path / "set", size=[8, 20], channels=1, val=0)
    assert dataset.image_shape == (1, 8, 20)
    assert dataset.train is not None
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 80, 160] * 2


def test_a_call_takes_height_and_width(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    student = kd_lightning.distill(
        SmallConvNet(widths=(4, 8, 16), num_classes=3, in_channels=1),
        num_classes=3,
        image=(1, 8, 16),
        trainer__max_epochs=1,
        trainer__accelerator="cpu",
        source__rounds=2,
        method__batch_size=8,
        method__generator__ngf=4,
        teacher__check=False,
    )
    assert student(torch.rand(1, 1, 8, 16)).shape == (1, 3)
    with Image.open(next(student.folder.rglob("samples/*.png"))) as grid:
        assert grid.width > grid.height
