"""Fonts for pictures: Pillow's own, and for other scripts one that is installed and has their letters."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

WIDE = ("NotoSansCJK", "NotoSans-Regular", "SourceHanSans", "unifont", "Arial Unicode", "PingFang", "msyh", "malgun")
"""Beginnings of files of fonts with many scripts, the widest first."""
MISSING = "\uffff"
"""A letter that no font has: what is drawn like it is missing."""


def font_of(size: int, text: str = "") -> Any:
    """The first font that has all letters of a text, else the one that has the most of them."""
    letters = frozenset(text) - frozenset(map(chr, range(32, 127)))
    return ImageFont.load_default(size) if not letters else _at(size, _covering(letters))


@functools.cache
def _covering(letters: frozenset[str]) -> str | None:
    best, most = None, -1
    for file in (None, *_installed()):
        try:
            font = _at(16, file)
        except OSError:
            continue
        there = sum(not _same(font, letter, MISSING) for letter in letters)
        if there > most:
            best, most = file, there
        if most == len(letters):
            break
    return best


def _same(font: Any, a: str, b: str) -> bool:
    one, other = font.getmask(a), font.getmask(b)
    return one.size == other.size and bytes(one) == bytes(other)


@functools.cache
def _at(size: int, file: str | None) -> Any:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@functools.cache
def _installed() -> tuple[str, ...]:
    """Font files: Matplotlib's DejaVu, then the system's, the widest first."""
    found = find_spec("matplotlib")
    ours = Path(str(found and found.origin)).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    system = sorted((file for file in _of_system() if file.name.startswith(WIDE)), key=_wideness)
    return tuple(str(file) for file in (ours, *system) if file.is_file())


def _wideness(file: Path) -> tuple[int, str]:
    return next(i for i, name in enumerate(WIDE) if file.name.startswith(name)), file.name


def _of_system() -> Iterator[Path]:
    home = Path.home()
    places = {
        "darwin": (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"),
        "win32": (Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts",),
    }.get(sys.platform, (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"))
    for place in places:
        for end in ("ttf", "ttc", "otf"):
            yield from place.rglob(f"*.{end}")
