"""Pictures without matplotlib: what is drawn where."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Split
from kd_lightning.engine.callbacks import WatchGenerator
from kd_lightning.metrics.map_pictures import spread
from kd_lightning.tracking import fonts
from kd_lightning.tracking.captioned_grid import captioned
from kd_lightning.tracking.curve_picture import WIDTH, draw_curves
from kd_lightning.tracking.fonts import font_of
from kd_lightning.tracking.image_grids import BAR, DEEP, PAPER, RED, SERIES, bars, matrix


def columns_of(picture: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """First and last column of every stretch of columns that hold a colour."""
    there = (np.asarray(picture) == colour).all(2).any(0).nonzero()[0]
    cuts = [0, *((np.diff(there) > 1).nonzero()[0] + 1).tolist(), len(there)]
    return [(int(there[a]), int(there[b - 1])) for a, b in pairwise(cuts) if b > a]


def pixels(picture: Image.Image, colour: tuple[int, int, int], span: tuple[int, int]) -> int:
    return int((np.asarray(picture)[:, span[0] : span[1] + 1] == colour).all(2).sum())


def test_bars_are_as_high_as_their_counts_and_nothing_is_red() -> None:
    picture = bars(torch.tensor([50, 0, 100]), ["a", "b", "c"], "three classes")
    low, high = columns_of(picture, BAR)
    assert pixels(picture, BAR, high) == pytest.approx(2 * pixels(picture, BAR, low), rel=0.02)
    ((left, right),) = columns_of(picture, RED)
    assert low[1] < left < right < high[0]


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_every_bar_has_its_place_however_many_classes(classes: int) -> None:
    picture = bars(torch.ones(classes, dtype=torch.int64), [f"class {i}" for i in range(classes)], "all alike")
    assert picture.width < 1400
    stretches = columns_of(picture, BAR)
    assert len(stretches) == (classes if classes <= 100 else 1)
    assert stretches[-1][1] - stretches[0][0] >= 0.8 * min(classes * 46, 1000)


@pytest.mark.parametrize(("classes", "cell"), [(3, 40), (10, 40), (40, 25), (100, 10), (1000, 1)])
def test_a_matrix_is_dark_where_its_rows_are(classes: int, cell: int) -> None:
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    counts[0, classes - 1] = 7  # row 0 called by the last class
    picture = np.asarray(matrix(counts, [str(i) for i in range(classes)], "moved", rows="label", columns="student"))
    rows, columns = (picture == DEEP).all(2).nonzero()
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == cell
    assert picture.shape[1] - columns.max() < 30 or classes < 10  # a long title may be wider
    assert rows.min() < 120  # the first row is at the top
    assert (picture[rows.max() + 1 :, columns.min() : columns.max()] != DEEP).any(2).all()


def test_a_row_without_images_stays_white_and_mistakes_show() -> None:
    counts = torch.tensor([[99, 1], [0, 0]])
    picture = np.asarray(matrix(counts, ["0", "1"], "t", rows="label", columns="student"))
    dark = (picture[..., 0] < 40).any(0).nonzero()[0]
    rows, columns = ((picture[..., 2] == 107) | (picture[..., 2] == 108)).nonzero()
    right, below = columns.max() + 5, rows.max() + 5
    assert len(dark)
    assert tuple(picture[rows.min() + 3, right]) != PAPER  # 1 of 100
    assert tuple(picture[below, right]) == tuple(picture[below, columns.min() + 3]) == PAPER


def test_names_are_written_and_long_ones_cut() -> None:
    counts = torch.eye(3, dtype=torch.int64)
    narrow, wide, longer = (
        matrix(counts, [name] * 3, "t", rows="label", columns="student") for name in ("a", "a" * 20, "a" * 200)
    )
    assert narrow.width < wide.width
    assert longer.width <= wide.width + 10
    assert longer.height <= wide.height + 10


def test_overlays_show_images_of_all_parts_of_a_set_and_rare_classes() -> None:
    labels = torch.zeros(40, 4, 4, dtype=torch.uint8)
    labels[13, 0, 0], labels[14, 0, 0], labels[39, 0, 0] = 1, 255, 2
    split = Split(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), labels)
    assert spread(split, Segmentation(3), 4).tolist() == [0, 13, 20, 39]
    assert spread(Split(split.images[:2], labels[:2]), Segmentation(3), 4).tolist() == [0, 1]


def test_images_stand_in_rows_with_their_captions() -> None:
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    images[1] = 200
    picture = captioned(images, ["a (0.50)", "b", "a name that is far too long for it (0.25)"], columns=2)
    side = 72
    assert picture.size == (2 * side + 18, 2 * (side + 22) + 6)
    assert picture.getpixel((6 + side + 6 + 10, 20)) == (200, 200, 200)
    strip = picture.crop((0, 6 + side, side, 6 + side + 16))
    assert strip.getextrema()[0][0] < 100, "no caption"


def test_generated_images_are_sorted_by_class_then_by_confidence(tmp_path: Path) -> None:
    answers = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 5.0], [9.0, 0.0]])
    watch = WatchGenerator(tmp_path, ["cat", "dog"])
    assert watch._sorted(answers).tolist() == [3, 1, 2, 0]
    captions, _ = watch._worded(answers[watch._sorted(answers)])
    assert [caption.split()[0] for caption in captions] == ["cat", "cat", "dog", "dog"]


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs Matplotlib's font")
@pytest.mark.parametrize("name", ["кошка", "γάτα", "şemsiye", "قط"])
def test_names_in_other_scripts_are_drawn(name: str) -> None:
    font = font_of(12, name)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in name)


@pytest.fixture
def fonts_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No font of this system; what was found before is forgotten, and again at the end."""

    def forget() -> None:
        for found in (fonts._installed, fonts._covering, fonts._has, fonts._say_missing):
            found.cache_clear()

    forget()
    monkeypatch.setattr(fonts, "_of_system", lambda: iter(()))
    yield
    forget()


def test_names_that_no_font_has_are_numbers_and_it_is_said_once(
    fonts_anew: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fonts, "PACKAGED", {})
    assert fonts.legible(["cat", "猫", "naïve", "犬 dog"]) == ["cat", "class 1", "naive", "class 3"]
    said = capsys.readouterr().err
    assert said.startswith("no font here has the letters of 猫 and 1 more: pictures show the numbers")
    assert "install 'kd-lightning[fonts]'" in said
    counts, numbers = torch.tensor([[3, 1], [0, 2]]), ["class 0", "class 1"]
    for draw in (
        lambda names: bars(counts[0], names, "t"),
        lambda names: matrix(counts, names, "t", rows="r", columns="c"),
    ):
        assert draw(["猫", "犬"]).tobytes() == draw(numbers).tobytes()
    assert capsys.readouterr().err == "", "it is said once"


def test_a_font_that_a_package_brings_draws_them(
    fonts_anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    empty = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None).glyph()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": empty, "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupPost()
    (tmp_path / "noto_cjk_sans_otc").mkdir()
    (tmp_path / "noto_cjk_sans_otc" / "__init__.py").touch()
    builder.save(tmp_path / "noto_cjk_sans_otc" / "NotoSansCJK-Regular.ttc")
    monkeypatch.syspath_prepend(tmp_path)
    assert fonts.legible(["猫", "犬"]) == ["猫", "class 1"]
    assert font_of(20, "猫").getmask("猫").getbbox() is not None


def test_curves_are_drawn_with_their_last_values(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("round,seconds,train/kd,val/accuracy\n0,0.1,2.0,\n9,0.2,1.0,0.5\n19,0.3,nan,0.75\n")
    draw_curves(table, tmp_path / "curves.png", "digits")
    with Image.open(tmp_path / "curves.png") as picture:
        both = picture.size
        assert SERIES[0] in {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    table.write_text("round,seconds,train/kd\n0,0.1,2.0\n")
    draw_curves(table, tmp_path / "one.png", "digits")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.height < both[1]
    draw_curves(tmp_path / "none.csv", tmp_path / "none.png", "digits")
    assert not (tmp_path / "none.png").exists()


def test_losses_of_unlike_height_are_all_seen(tmp_path: Path) -> None:
    """How many rows of the picture each curve crosses: all of them as much as the smallest alone would show."""

    def crossed(large: float) -> list[int]:
        table, picture = tmp_path / "metrics.csv", tmp_path / "curves.png"
        table.write_text(f"round,train/bn,train/kd\n0,{large},2.0\n9,{large / 2},0.1\n19,{large / 4},-0.5\n")
        draw_curves(table, picture, "digits")
        with Image.open(picture) as image:
            plot = np.asarray(image.convert("RGB"))[:, : WIDTH - 12].astype(int)
        return [int((abs(plot - colour).max(2) < 40).any(1).sum()) for colour in SERIES[:2]]

    assert min(crossed(4.0)) > 40
    assert min(crossed(4000.0)) > 15
