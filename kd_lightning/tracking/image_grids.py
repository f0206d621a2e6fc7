"""Pictures drawn with Pillow only: image grids, histograms, confusion matrices, scatter plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kd_lightning.store.files import writing
from kd_lightning.tracking.fonts import font_of, legible

INK, PAPER, GREY, RED = (30, 30, 30), (255, 255, 255), (140, 140, 140), (190, 30, 30)
BAR = (54, 108, 166)
SERIES = (BAR, (222, 140, 58), (90, 150, 90))
"""Colours of bars that stand beside each other."""
FAINT = (225, 225, 225)
DEEP = (8, 48, 107)
"""Colour of a matrix cell that holds all of its row."""
LEGIBLE = 18
"""Width in pixels below which columns get no name and no number."""


def to_uint8(images: Tensor) -> Tensor:
    """Images in data units, clamped to [0, 1], as uint8 (N, C, H, W) on the CPU."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def save_grid(
    images: Tensor, path: Path, *, columns: int = 10, zoom: int | None = None, rows: Sequence[str] = ()
) -> None:
    """Write uint8 images (N, C, H, W) as one PNG, enlarged so that each is at least about 48 pixels wide and high.

    Args:
        images: in row order.
        path: of the PNG.
        columns: images per row.
        zoom: factor on height and width; None chooses it.
        rows: names of the rows, drawn on the left; may be empty.
    """
    zoom = zoom or max(1, 48 // min(images.shape[-2:]))
    enlarged = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    picture = _tiled(enlarged, columns, gap=max(2, zoom // 2))
    save(_beside(picture, [_text(row) for row in rows]) if rows else picture, path)


def _tiled(images: Tensor, columns: int, *, gap: int) -> Image.Image:
    """Images uint8 (N, C, H, W) in rows, with white between and around them."""
    n, _, height, width = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    picture = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), PAPER)
    for i, image in enumerate(images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()):
        at = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        picture.paste(Image.fromarray(image), at)
    return picture


def _beside(picture: Image.Image, words: Sequence[Image.Image]) -> Image.Image:
    left, pitch = max(word.width for word in words) + 16, picture.height / len(words)
    wider = Image.new("RGB", (left + picture.width, picture.height), PAPER)
    wider.paste(picture, (left, 0))
    for i, word in enumerate(words):
        wider.paste(word, (left - 8 - word.width, round((i + 0.5) * pitch - word.height / 2)))
    return wider


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; create its folder."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def bars(counts: Tensor, names: Sequence[str], title: str) -> Image.Image:
    """A histogram over classes: counts above the bars, red for 0, and a line at the mean.

    Args:
        counts: int64 (K,).
        names: of the classes.
        title: above it.
    """
    wide, height, left, top = _pitch(len(counts), most=46, room=1200), 200, 16, 58
    roomy, head = wide >= LEGIBLE, font_of(14, title)
    labels = _labels(names, wide, hang=True) if roomy else _text(f"classes 0 to {len(counts) - 1}", GREY)
    width = 2 * left + max(wide * len(counts), labels.width, round(head.getlength(title)))
    picture = Image.new("RGB", (width, top + height + labels.height + 20), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((left, 10), title, INK, head)
    floor, right, most = top + height, left + wide * len(counts), max(int(counts.max()), 1)
    equal = floor - round(height * float(counts.float().mean()) / most)
    draw.line((left, equal, right, equal), GREY)
    for i, count in enumerate(counts.tolist()):
        x, y = left + i * wide, floor - max(round(height * count / most), 2)
        draw.rectangle((x + wide // 8, y, x + wide - 1 - wide // 8, floor), BAR if count else RED)
        if roomy:
            at, font = (x + wide / 2, y - 4), _fitting(count, wide)
            draw.rectangle(draw.textbbox(at, str(count), font, anchor="mb"), PAPER)  # keeps the line off the number
            draw.text(at, str(count), INK if count else RED, font, anchor="mb")
    draw.line((left, floor, right, floor), INK)
    picture.paste(labels, (left, floor + 6))
    return picture


def matrix(counts: Tensor, names: Sequence[str], title: str, *, rows: str, columns: str) -> Image.Image:
    """A confusion matrix: the darker a cell, the larger its share of the row; counts in the cells where there is room.

    Args:
        counts: int64 (K, K); ``counts[i, j]`` images of class i by the rows and class j by the columns.
        names: of the classes.
        title: above it.
        rows: what the rows are, such as ``label``.
        columns: what the columns are, such as ``student``.
    """
    k = len(counts)
    cell, head, font = _pitch(k, most=40, room=1000), font_of(14, title), font_of(12, columns + rows)
    roomy = cell >= LEGIBLE
    beside = [_text(_cut(name)) for name in legible(names)] if roomy else []
    above = _labels(names, cell, hang=False) if roomy else None
    left = 34 + max((word.width for word in beside), default=0)
    top = 60 + (above.height if above else 0)
    width = max(left + cell * k, 16 + round(head.getlength(title))) + 16
    picture = Image.new("RGB", (width, top + cell * k + 16), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((16, 10), title, INK, head)
    draw.text((left, 36), columns if roomy else f"{columns}, classes 0 to {k - 1}", GREY, font)
    side = _text(rows, GREY).rotate(90, expand=True)
    picture.paste(side, (8, top))
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    shade = share.sqrt()[..., None]  # the root keeps a few mistakes visible beside many right answers
    colours = (torch.tensor(PAPER) * (1 - shade) + torch.tensor(DEEP) * shade).round().to(torch.uint8)
    cells = Image.fromarray(colours.numpy()).resize((cell * k, cell * k), Image.Resampling.NEAREST)
    picture.paste(cells, (left, top))
    for i, name in enumerate(beside):
        middle = top + (i + 0.5) * cell
        picture.paste(name, (left - 6 - name.width, round(middle - name.height / 2)))
        for j in counts[i].nonzero().flatten().tolist():
            count, ink = int(counts[i, j]), PAPER if shade[i, j] > 0.55 else INK
            draw.text((left + (j + 0.5) * cell, middle), str(count), ink, _fitting(count, cell), anchor="mm")
    draw.rectangle((left - 1, top - 1, left + cell * k, top + cell * k), outline=GREY)
    if above:
        picture.paste(above, (left, top - 4 - above.height))
    return picture


def shares(values: Mapping[str, Tensor], names: Sequence[str], title: str) -> Image.Image:
    """Bars from 0 to 1 for each class, one for each series beside the others; none for NaN.

    Args:
        values: name of the series -> values (K,).
        names: of the classes.
        title: above it.
    """
    height, left, top, head, font = 200, 44, 62, font_of(14, title), font_of(12, "".join(values))
    wide = max(8 * len(values) + 6, _pitch(len(names), most=28 * len(values) + 12, room=1100))
    labels = _labels(names, wide, hang=True)
    width = max(left + 16 + wide * len(names), 16 + round(head.getlength(title)) + 16)
    picture = Image.new("RGB", (width, top + height + labels.height + 20), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((16, 10), title, INK, head)
    x = left
    for name, colour in zip(values, SERIES, strict=False):
        draw.rectangle((x, 38, x + 10, 48), colour)
        draw.text((x + 15, 43), name, INK, font, anchor="lm")
        x += 32 + round(font.getlength(name))
    for part in (0, 0.25, 0.5, 0.75, 1):
        y = top + height - round(height * part)
        draw.line((left, y, left + wide * len(names), y), GREY if part == 0 else FAINT)
        draw.text((left - 6, y), f"{part:g}", GREY, font, anchor="rm")
    bar = (wide - 6) // len(values)
    for s, (series, colour) in enumerate(zip(values.values(), SERIES, strict=False)):
        for i, value in enumerate(series.tolist()):
            if value == value:
                x = left + i * wide + 3 + s * bar
                draw.rectangle((x, top + height - round(height * value), x + bar - 2, top + height), colour)
    picture.paste(labels, (left, top + height + 6))
    return picture


def framed(columns: Mapping[str, Tensor], legend: Mapping[str, Sequence[int]]) -> Image.Image:
    """Columns of images with their names above, enlarged to at least about 160 pixels, and a legend of colours below.

    Args:
        columns: name -> uint8 (N, 3, H, W), all of one shape.
        legend: name -> red, green, blue.
    """
    n, _, height, width = next(iter(columns.values())).shape
    zoom, gap, left, font = max(1, -(-160 // width)), 4, 16, font_of(12, "".join(columns))
    tall, wide = height * zoom, width * zoom
    total = left + len(columns) * (wide + gap) + left - gap
    entries, x, y = [], left, 0
    for name, colour in zip(legible(list(legend)), legend.values(), strict=True):
        word = _text(_cut(name))
        room = 32 + word.width
        if x > left and x + room > total - left:
            x, y = left, y + 20
        entries.append((x, y, word, tuple(colour)))
        x += room
    bottom = 34 + n * (tall + gap) + 8
    picture = Image.new("RGB", (total, bottom + y + 28), PAPER)
    draw = ImageDraw.Draw(picture)
    for c, (name, images) in enumerate(columns.items()):
        x = left + c * (wide + gap)
        draw.text((x + wide / 2, 20), name, INK, font, anchor="mm")
        for i, image in enumerate(images):
            small = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.paste(small.resize((wide, tall), Image.Resampling.NEAREST), (x, 34 + i * (tall + gap)))
    for x, y, word, colour in entries:
        draw.rectangle((x, bottom + y, x + 12, bottom + y + 12), colour)
        picture.paste(word, (x + 18, bottom + y - 2))
    return picture


def scatter(across: Tensor, up: Tensor, *, low: float, high: float, title: str, columns: str, rows: str) -> Image.Image:
    """A scatter plot of numbers of one range: darker where points are dense, with the diagonal.

    Args:
        across: x values (N,).
        up: y values (N,).
        low: lower end of both axes.
        high: upper end of both axes.
        title: above it.
        columns: what ``across`` is.
        rows: what ``up`` is.
    """
    cells, zoom, left, top = 121, 3, 64, 60
    side = cells * zoom
    places = [((v.float() - low) / (high - low) * (cells - 1)).round().long().clamp(0, cells - 1) for v in (across, up)]
    counts = torch.bincount((cells - 1 - places[1]) * cells + places[0], minlength=cells**2).view(cells, cells)
    shade = (0.35 + 0.65 * counts / counts.max().clamp(min=1)).where(counts > 0, 0.0)[..., None]
    colours = (torch.tensor(PAPER) * (1 - shade) + torch.tensor(DEEP) * shade).round().to(torch.uint8)
    head, font = font_of(14, title), font_of(12, columns + rows)
    width = max(left + side, 16 + round(head.getlength(title))) + 24
    picture = Image.new("RGB", (width, top + side + 46), PAPER)
    draw = ImageDraw.Draw(picture)
    picture.paste(Image.fromarray(colours.numpy()).resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw.line((left, top + side, left + side, top), GREY)
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline=GREY)
    draw.text((16, 10), title, INK, head)
    for number in (low, (low + high) / 2, high):
        at = round((number - low) / (high - low) * side)
        draw.text((left + at, top + side + 6), f"{number:.4g}", INK, font, anchor="mt")
        draw.text((left - 6, top + side - at), f"{number:.4g}", INK, font, anchor="rm")
    draw.text((left + side / 2, top + side + 24), columns, GREY, font, anchor="mt")
    draw.text((left, top - 18), rows, GREY, font)
    return picture


def _fitting(number: int, width: int) -> Any:
    """The font, reduced until a number is no wider than its column."""
    return font_of(max(7, min(12, round((width - 4) * 1.7 / len(str(number))))))


def _pitch(columns: int, *, most: int, room: int) -> int:
    return max(1, min(most, room // columns))


def _cut(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _text(text: str, ink: tuple[int, int, int] = INK) -> Image.Image:
    font = font_of(12, text)
    picture = Image.new("RGB", (max(1, round(font.getlength(text))), 16), PAPER)
    ImageDraw.Draw(picture).text((0, 1), text, ink, font)
    return picture


def _labels(names: Sequence[str], pitch: int, *, hang: bool) -> Image.Image:
    """Names of columns: horizontal where all fit, else vertical, aligned to the top (``hang``) or the bottom."""
    words = [_text(_cut(name)) for name in legible(names)]
    if max(word.width for word in words) > pitch - 4:
        words = [word.rotate(90, expand=True) for word in words]
    strip = Image.new("RGB", (pitch * len(words), max(word.height for word in words)), PAPER)
    for i, word in enumerate(words):
        strip.paste(word, (i * pitch + (pitch - word.width) // 2, 0 if hang else strip.height - word.height))
    return strip
