"""A picture of a fit's curves, drawn with Pillow only."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from kd_lightning.tracking.fonts import font_of
from kd_lightning.tracking.image_grids import FAINT, GREY, INK, PAPER, SERIES, save

Curve = Sequence[tuple[float, float]]
COLOURS = (*SERIES, (160, 90, 160), (190, 60, 60), (100, 100, 100), (60, 150, 170), (150, 120, 60))
WIDTH, HEIGHT, LEGEND = 560, 220, 230
"""Pixels of one panel, and of the legend beside it."""
SHARP = 2
"""Drawn so many times as large and reduced, which smooths the lines."""
UNLIKE = 50
"""How many times as high one curve is as another for the axis to become logarithmic."""
AXES = ("round", "seconds", "queries", "epoch")


def draw_curves(table: Path, picture: Path, title: str) -> None:
    """Draw the columns of ``metrics.csv`` over the rounds: a panel for what is validated, one for the losses.

    Args:
        table: ``metrics.csv``; where there is none, or nothing in it, nothing is drawn.
        picture: PNG to write.
        title: above the panels.
    """
    panels = _panels(table) if table.is_file() else {}
    if not panels:
        return
    drawn = [_panel(name, curves) for name, curves in panels.items()]
    whole = Image.new("RGB", (drawn[0].width, 36 + sum(each.height for each in drawn)), PAPER)
    ImageDraw.Draw(whole).text((16, 10), title, INK, font_of(14, title))
    y = 36
    for each in drawn:
        whole.paste(each, (0, y))
        y += each.height
    save(whole, picture)


def _panels(table: Path) -> dict[str, dict[str, Curve]]:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with table.open() as file:
        for row in csv.DictReader(file):
            for key, text in row.items():
                group, _, name = key.partition("/")
                if key in AXES or not text or not math.isfinite(value := float(text)):
                    continue
                panels.setdefault(group, {}).setdefault(name or key, []).append((float(row["round"]), value))
    order = [name for name in ("val", "train", *panels) if name in panels]
    return {name: dict(list(panels[name].items())[: len(COLOURS)]) for name in dict.fromkeys(order)}


def _panel(name: str, curves: Mapping[str, Curve]) -> Image.Image:
    points = [point for curve in curves.values() for point in curve]
    unit = _unit(curves.values())
    left, right = _range([x for x, _ in points])
    low, high = _range([_risen(y, unit) for _, y in points])
    x0, y0, x1, y1 = 64, 26, WIDTH - 10, HEIGHT - 30
    large = Image.new("RGB", (WIDTH * SHARP, HEIGHT * SHARP), PAPER)
    lines = ImageDraw.Draw(large)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (point[0] - left) / (right - left), (_risen(point[1], unit) - low) / (high - low)
        return (x0 + x * (x1 - x0)) * SHARP, (y1 - y * (y1 - y0)) * SHARP

    for part in (0, 0.25, 0.5, 0.75, 1):
        y = (y1 - part * (y1 - y0)) * SHARP
        lines.line((x0 * SHARP, y, x1 * SHARP, y), FAINT if part else GREY, SHARP)
    for curve, colour in zip(curves.values(), COLOURS, strict=False):
        if len(curve) > 1:
            lines.line([at(point) for point in curve], colour, 2 * SHARP, joint="curve")
        x, y = at(curve[-1])
        lines.ellipse((x - 3 * SHARP, y - 3 * SHARP, x + 3 * SHARP, y + 3 * SHARP), colour)
    panel = Image.new("RGB", (WIDTH + LEGEND, HEIGHT), PAPER)
    panel.paste(large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), (0, 0))
    draw, small = ImageDraw.Draw(panel), font_of(11)
    said = {"val": "validation", "train": "training"}.get(name, name) + (", logarithmic" if unit else "")
    draw.text((16, 4), said, INK, font_of(12, said))
    for part in (0, 0.5, 1):
        y = y1 - part * (y1 - y0)
        value = low + part * (high - low)
        value = unit * math.sinh(value) if unit else value
        draw.text((x0 - 6, y), f"{value:.3g}", GREY, small, anchor="rm")
        draw.text((x0 + part * (x1 - x0), y1 + 6), f"{left + part * (right - left):,.0f}", GREY, small, anchor="mt")
    draw.text(((x0 + x1) / 2, y1 + 18), "round", GREY, small, anchor="mt")
    for i, (label, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        y = y0 + 8 + i * 20
        draw.line((WIDTH + 4, y, WIDTH + 22, y), colour, 3)
        last = f"{label[:22]}  {curves[label][-1][1]:.4g}"
        draw.text((WIDTH + 28, y), last, INK, font_of(12, last), anchor="lm")
    return panel


def _unit(curves: Iterable[Curve]) -> float | None:
    """Up to which value an axis is linear, beyond it logarithmic; None if a linear one shows every curve."""
    heights = [height for curve in curves if (height := max(abs(y) for _, y in curve))]
    return min(heights) if heights and max(heights) > UNLIKE * min(heights) else None


def _risen(value: float, unit: float | None) -> float:
    return math.asinh(value / unit) if unit else value


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
