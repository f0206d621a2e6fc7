"""Fonts for pictures: Pillow's own, and for other scripts one that is installed and has their letters.

Matplotlib brings one for Arabic, Cyrillic, Greek and Hebrew letters, the extra ``fonts`` one for Chinese, Japanese and
Korean; the others are the system's.
"""

from __future__ import annotations

import functools
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import ImageFont

from kd_lightning.core.extras import install

PACKAGED = {"matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf", "noto_cjk_sans_otc": "NotoSansCJK-Regular.ttc"}
"""Packages that bring a font with many scripts -> its file in them."""
WIDE = ("NotoSansCJK", "NotoSans-Regular", "SourceHanSans", "unifont", "Arial Unicode", "PingFang", "msyh", "malgun",
        "DroidSansFallback", "wqy-", "Hiragino", "YuGoth", "Nanum", "Noto", "FreeSans")  # fmt: skip
"""Beginnings of files of fonts with many scripts, the widest first."""
MOST = 300
"""Other fonts of the system that are looked at."""
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
        there = sum(_has(file, letter) for letter in letters)
        if there > most:
            best, most = file, there
        if most == len(letters):
            break
    return best


@functools.cache
def _has(file: str | None, letter: str) -> bool:
    """Whether a font has a letter; no font has what cannot be read as one."""
    try:
        one, other = (_at(16, file).getmask(each) for each in (letter, MISSING))
    except OSError:
        return False
    return one.size != other.size or bytes(one) != bytes(other)


def legible(names: Sequence[str]) -> list[str]:
    """The names of classes as pictures can show them.

    Where no font has all letters of a name it loses its accents; where that does not help it is ``class 3``, its
    number, which is said once, with what to install.
    """
    shown = [next(filter(_drawn, (name, _plain(name))), f"class {i}") for i, name in enumerate(names)]
    if lost := [
        name for i, (name, drawn) in enumerate(zip(names, shown, strict=True)) if drawn == f"class {i}" != name
    ]:
        _say_missing(lost[0], len(lost))
    return shown


def _plain(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


def _drawn(name: str) -> bool:
    letters = frozenset(name) - frozenset(map(chr, range(32, 127)))
    file = _covering(letters) if letters else None
    return all(_has(file, letter) for letter in letters)


@functools.cache
def _say_missing(name: str, number: int) -> None:
    others = f" and {number - 1:,} more" * (number > 1)
    print(
        f"no font here has the letters of {name}{others}: pictures show the numbers of these classes. For Chinese, "
        f"Japanese and Korean type {install('fonts')}, for other scripts install a font of the system that has them",
        file=sys.stderr,
        flush=True,
    )


@functools.cache
def _at(size: int, file: str | None) -> Any:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@functools.cache
def _installed() -> tuple[str, ...]:
    """Font files: those that packages bring, then the system's, the widest first."""
    found = ((find_spec(package), file) for package, file in PACKAGED.items())
    packaged = [Path(spec.origin).parent / file for spec, file in found if spec and spec.origin]
    system = sorted(_of_system(), key=_wideness)
    wide = [file for file in system if file.name.startswith(WIDE)]
    others = (file for file in system if not file.name.startswith(WIDE))
    return tuple(str(file) for file in (*packaged, *wide, *islice(others, MOST)) if file.is_file())


def _wideness(file: Path) -> tuple[int, str]:
    return next((i for i, name in enumerate(WIDE) if file.name.startswith(name)), len(WIDE)), file.name


def _of_system() -> Iterator[Path]:
    home = Path.home()
    places = {
        "darwin": (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"),
        "win32": (Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts",),
    }.get(sys.platform, (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"))
    for place in places:
        for end in ("ttf", "ttc", "otf"):
            yield from place.rglob(f"*.{end}")
