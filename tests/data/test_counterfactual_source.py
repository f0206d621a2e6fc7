"""A drawing teacher is a black box, what it draws is kept, and counterfactuals have three labels of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import ConfigError, TeacherError
from kd_lightning.networks.generators.cgn_imagenet import ImageNetCgn
from kd_lightning.sources.context import Context
from kd_lightning.sources.counterfactual import Counterfactual
from kd_lightning.sources.generator_outputs import Drawn
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.generator import DrawingTeacher, KeptDrawings

CLASSES = 5


class Painter(nn.Module):
    """Mask: 1 in the row of its label. Textures: red or blue as bright as their label. A little of z besides."""

    def __init__(self, *, low: float = 0.0, tall: bool = False) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.tensor(low))
        self.asked, self.tall = 0, tall

    def draw(self, im: str, z: Tensor, y: Tensor) -> Tensor:
        self.asked += len(y)
        if im == "shape":
            rows = torch.arange(8)[None, :, None].expand(len(y), 8, 8)
            mask = (rows == y[:, None, None]).float()[:, None] + self.low
            return mask.expand(-1, 3, -1, -1) if self.tall else mask
        colour = torch.tensor([1.0, 0.0, 0.0] if im == "fg" else [0.0, 0.0, 1.0])
        bright = (y + 1) / CLASSES + 0.05 * z[:, 0].clamp(-1, 1)
        return (bright[:, None] * colour)[..., None, None].expand(-1, 3, 8, 8).clamp(0, 1)


def read(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The labels of shape, texture and background."""
    shape = (x[:, 0].sum(2) > 0.05).float().argmax(1)
    fg = (x[:, 0].amax((1, 2)) * CLASSES - 1).round().long()
    bg = (x[:, 2].amax((1, 2)) * CLASSES - 1).round().long()
    return shape, fg, bg


@pytest.fixture
def weights(tmp_path: Path) -> str:
    save_file(Painter().state_dict(), tmp_path / "painter.safetensors")
    return str(tmp_path / "painter.safetensors")


def at(folder: Path) -> Context:
    nothing = Dataset("toy", list("abcde"), None, None, None, "none", "none", shape=(3, 8, 8))
    keys = {"data": "toy", "teacher": "none"}
    return Context(dataset=nothing, teacher=None, store=Store(folder / "store"), keys=keys, mean=[0.5], std=[0.5])


def source(weights: str, **settings: Any) -> Counterfactual:
    node = {"generator": Painter(), "weights": weights}
    usual: dict[str, Any] = {"latent": 4, "rounds": 20, "batch_size": 50}
    return Counterfactual(**{"mechanisms": {"shape": node, "fg": node, "bg": node}} | usual | settings)


def test_the_three_labels_are_independent_and_the_images_label_is_the_shapes(weights: str, tmp_path: Path) -> None:
    batches = list(source(weights).prepare(at(tmp_path)))
    x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    shape, fg, bg = read(x)
    assert torch.equal(shape, y)
    for a, b in ((shape, fg), (shape, bg), (fg, bg)):
        assert float((a == b).float().mean()) == pytest.approx(1 / CLASSES, abs=0.05)
        assert len((a * CLASSES + b).unique()) == CLASSES**2


def test_a_stream_is_drawn_from_seed_epoch_and_number_and_goes_on(weights: str, tmp_path: Path) -> None:
    loader = source(weights).prepare(at(tmp_path))
    first = [b.x for b in loader]
    again = source(weights).prepare(at(tmp_path))
    again.load_state_dict({"drawn": 7})
    assert all(torch.equal(a, b.x) for a, b in zip(first[7:], again, strict=True))
    again.set_epoch(1)
    assert not torch.equal(next(iter(again)).x, first[0])


def test_ratio_lets_images_share_a_mask(weights: str, tmp_path: Path) -> None:
    x, y, *_ = next(iter(source(weights, ratio=5).prepare(at(tmp_path))))
    shape, fg, _ = read(x)
    assert torch.equal(shape.view(10, 5), y.view(10, 5)[:, :1].expand(-1, 5))
    assert all(len(group.unique()) > 1 for group in fg.view(10, 5)[:3])


def test_permuted_labels_are_those_of_the_batch(weights: str, tmp_path: Path) -> None:
    x, y, *_ = next(iter(source(weights, labels="permuted").prepare(at(tmp_path))))
    _, fg, bg = read(x)
    assert torch.equal(fg.bincount(minlength=5), y.bincount(minlength=5))
    assert not torch.equal(fg, y)
    assert not torch.equal(fg, bg)


def test_a_number_of_images_is_made_once_and_kept(weights: str, tmp_path: Path) -> None:
    context = at(tmp_path)
    loader = source(weights, images=103, ratio=10).prepare(context)
    assert len(loader.images) == 100  # type: ignore[union-attr]
    assert context.notes["images_synthesised"] == 100
    grids = list((tmp_path / "store").glob("pool-*/grid.png"))
    assert len(grids) == 1
    again = source(weights, images=103, ratio=10).prepare(at(tmp_path))
    assert torch.equal(again.images, loader.images)  # type: ignore[union-attr]
    assert len(list((tmp_path / "store").glob("pool-*/grid.png"))) == 1


def test_kept_drawings_are_drawn_once_and_composed_anew(weights: str, tmp_path: Path) -> None:
    painter = Painter()
    node = {"generator": painter, "weights": weights}
    made = source(weights, drawings=40, mechanisms={"shape": node, "fg": node, "bg": node})
    loader = made.prepare(at(tmp_path))
    assert painter.asked == 3 * 40
    batches = list(loader)
    assert painter.asked == 3 * 40, "batches are composed of what is there"
    x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    shape, fg, _ = read(x)
    assert torch.equal(shape, y)
    assert len((shape * CLASSES + fg).unique()) == CLASSES**2
    assert not torch.equal(batches[0].x, batches[1].x)
    shades = [x[fg == k, 0].amax((1, 2)).unique() for k in range(CLASSES)]
    assert 1 < max(map(len, shades)) <= 8, "40 pictures are eight of each label"
    assert all(
        torch.equal(a.x, b.x) for a, b in zip(batches, source(weights, drawings=40).prepare(at(tmp_path)), strict=True)
    )


def test_each_kept_drawing_of_a_label_is_as_likely(weights: str) -> None:
    def kept(pictures: int) -> KeptDrawings:
        rng = torch.Generator().manual_seed(0)
        return KeptDrawings(DrawingTeacher(Painter(), weights), "fg", latent=4, classes=5, pictures=pictures, rng=rng)

    z = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    shades = kept(20).sample("fg", z, torch.full((4000,), 2))[:, 0, 0, 0]
    _, counts = shades.unique(return_counts=True)
    assert counts.tolist() == pytest.approx([1000] * 4, rel=0.1)
    assert len(kept(1).pictures) == 5, "one of each label at least"


def test_what_a_teacher_drew_is_asked_once_and_replayed_from_its_latents(weights: str, tmp_path: Path) -> None:
    painter = Painter()
    drawn = {"weights": weights, "im": "fg", "latent": 4, "pairs": 60, "batch_size": 20}
    loader = Drawn(generator=painter, **drawn).prepare(at(tmp_path))  # type: ignore[arg-type]
    assert painter.asked == 60
    again = Painter()
    assert torch.equal(Drawn(generator=again, **drawn).prepare(at(tmp_path)).images, loader.images)  # type: ignore[arg-type]
    assert again.asked == 0, "the kept pairs are all that a student needs"
    for x, y, z, _ in loader:
        assert y is not None
        assert z is not None
        torch.testing.assert_close(x, painter.draw("fg", z, y), rtol=0, atol=0.5 / 255 + 1e-5)
    assert loader.labels is not None
    assert torch.equal(loader.labels.bincount(), torch.full((5,), 12))


def test_the_drawing_teacher_shows_nothing_but_images(weights: str) -> None:
    painter = Painter()
    teacher = DrawingTeacher(painter, weights)
    z = torch.randn(3, 4, requires_grad=True)
    image = teacher.sample("fg", z, torch.arange(3))
    assert not image.requires_grad
    assert painter.low.grad is None
    assert [name for name in dir(teacher) if not name.startswith("_")] == ["asked", "latents", "sample"]
    assert teacher.asked == 3


@pytest.mark.parametrize(
    ("painter", "im", "why"),
    [
        (Painter(low=-1.0), "shape", r"answers shape in \[-1, 0\], expected \[0, 1\]: a generator"),
        (Painter(low=float("nan")), "shape", r"answers shape in \[nan, nan\]"),
        (Painter(tall=True), "shape", r"answers shape with \(3, 3, 8, 8\), expected \(3, 1, H, W\)"),
    ],
)  # fmt: skip
def test_a_teacher_that_draws_no_images_is_refused(painter: nn.Module, im: str, why: str) -> None:
    with pytest.raises(TeacherError, match=why):
        DrawingTeacher(painter).sample(im, torch.zeros(3, 4), torch.arange(3))


def test_settings_that_cannot_be_are_refused(weights: str) -> None:
    node = {"generator": Painter(), "weights": weights}
    with pytest.raises(ConfigError, match=r"source\.mechanisms names shape, fg: expected shape, fg, bg"):
        Counterfactual(mechanisms={"shape": node, "fg": node}, latent=4, rounds=1, batch_size=1)
    with pytest.raises(ConfigError, match=r"source\.ratio=0: expected at least 1"):
        source(weights, ratio=0)
    with pytest.raises(ConfigError, match=r"source\.labels=mixed: expected independent or permuted"):
        source(weights, labels="mixed")
    with pytest.raises(ConfigError, match=r"source\.drawings=0: expected at least 1, or null"):
        source(weights, drawings=0)


class Cut(Painter):
    """Trained on latents of its own."""

    def latents(self, n: int, length: int, rng: torch.Generator) -> Tensor:
        return torch.full((n, length), 0.25)


def test_a_teacher_is_asked_with_latents_as_it_was_trained_on(weights: str, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {"weights": weights, "im": "fg", "latent": 4, "pairs": 60, "batch_size": 20}
    loader = Drawn(generator=Cut(), **drawn).prepare(at(tmp_path))
    assert loader.answers is not None
    assert loader.answers.unique().tolist() == [0.25]
    other = Drawn(generator=Painter(), **drawn).prepare(at(tmp_path))
    assert other.answers is not None
    assert other.answers.std() > 0.5, "and the two are kept apart"
    net = ImageNetCgn(f_shape=Painter(), f_text=Painter(), f_bg=Painter(), u2net=Painter(), truncation=0.5)
    z = net.latents(2000, 4, torch.Generator().manual_seed(0))
    assert 0.9 < float(z.abs().max()) <= 1.0, "cut off at two deviations, times the truncation"
