"""Reads files from untrusted sources into plain data; every failure is one line that names the file."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError

MOST_JSON, MOST_YAML, MOST_TABLE = 16_000_000, 1_000_000, 200_000_000
"""Largest size in bytes of a JSON, a YAML and a table file."""
DEEPEST = 64
"""Largest nesting depth of lists and mappings."""
INFLATES, SLACK = 4, 1_000_000
"""A zip file may expand to this many times its size, plus this many bytes."""


@contextmanager
def reading(
    path: str | Path, *, error: type[UserError] = UserError, said: str = "", advice: str = "copy it again"
) -> Iterator[None]:
    """Turn any exception inside the block into one line that names the file.

    Args:
        path: the file, which must be a regular one: reading a pipe or device could block for ever.
        error: type to raise.
        said: beginning of the line; by default, that the file cannot be read.
        advice: end of the line.

    Raises:
        UserError: of type ``error``; a UserError raised inside passes unchanged.
    """
    said = said or f"{path} cannot be read"
    try:
        refuse_irregular(path)
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as reason:  # safetensors raises a panic that is not an Exception
        raise error(f"{said} ({in_a_line(reason)}): {advice}") from reason


def in_a_line(reason: BaseException, most: int = 160) -> str:
    """An exception's text in one printable line."""
    text = (getattr(reason, "strerror", None) or str(reason)).strip() or type(reason).__name__
    if isinstance(reason, MemoryError | RecursionError):
        text = type(reason).__name__
    return "".join(c if c.isprintable() else "?" for c in text.splitlines()[0][:most])


def refuse_irregular(path: str | Path) -> None:
    """Raise unless a path is a regular file or a link to one.

    Raises:
        OSError: says what it is instead.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        if os.path.islink(path):
            raise OSError("a link that leads nowhere") from None
        raise
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file")


def read_text(path: str | Path, most: int = MOST_JSON, *, errors: str = "strict") -> str:
    """The text of a file of at most ``most`` bytes.

    Raises:
        OSError, ValueError: it is larger, not a regular file, or not text.
    """
    refuse_irregular(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # it may have become a pipe since
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return content.decode("utf-8", errors)


def read_json(path: str | Path, **how: Any) -> Any:
    """Plain data from a JSON file.

    Args:
        path: the file.
        **how: keyword arguments of :func:`reading`.

    Raises:
        UserError: it cannot be read, is not JSON, too large or too deep.
    """
    with reading(path, **how):
        return refuse_odd(json.loads(read_text(path)))


def read_yaml(path: str | Path, **how: Any) -> Any:
    """Plain data from a YAML file, with numbers parsed as in configurations; nothing is resolved.

    Args:
        path: the file.
        **how: keyword arguments of :func:`reading`.

    Raises:
        UserError: it cannot be read, is not YAML, too large or too deep, or contains aliases.
    """
    import yaml
    from omegaconf._utils import get_yaml_loader

    with reading(path, **how):
        text, depth = read_text(path, MOST_YAML), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # nested aliases can expand to gigabytes
                raise ValueError(f"*{event.anchor} refers to another part: expected plain values")
            opens = isinstance(event, yaml.CollectionStartEvent)
            depth += opens - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels deep")
        return refuse_odd(yaml.load(text, Loader=get_yaml_loader()))


def refuse_odd(tree: Any) -> Any:
    """Return a tree if it is plain data: text, numbers, booleans and None in lists and mappings, not too deep.

    Raises:
        ValueError: says what else is in it.
    """
    for where, value, depth in walk(tree):
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels deep")
        if isinstance(value, dict):
            if odd := [key for key in value if type(key) not in (str, int, float, bool)]:
                raise ValueError(f"{where or 'it'} has the key {odd[0]!r:.40}, expected text")
        elif value is not None and type(value) not in (str, int, float, bool, list):
            raise ValueError(f"{where or 'it'} is a {type(value).__name__}, expected plain data")
    return tree


def refuse_interpolations(tree: Any) -> None:
    """Raise if a tree contains an interpolation ``${...}``, escaped or not.

    Raises:
        ValueError: names the first one.
    """
    for where, value, _ in walk(tree):
        texts = value if isinstance(value, dict) else (value,)
        if any(isinstance(text, str) and "${" in text for text in texts):
            raise ValueError(f"{where or 'it'} holds an interpolation, ${{...}}: expected plain values")


def walk(tree: Any) -> Iterator[tuple[str, Any, int]]:
    """All values of nested lists and mappings with their dotted path and depth, outermost first."""
    ahead: list[tuple[str, Any, int]] = [("", tree, 0)]
    while ahead:
        where, value, depth = ahead.pop()
        yield where, value, depth
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        ahead += [(f"{where}.{key}".lstrip("."), v, depth + 1) for key, v in inner]


def refuse_inflating(path: str | Path) -> bool:
    """Whether a file is a zip file, as torch writes them.

    Raises:
        ValueError: it is one that expands to far more than its size.
    """
    with open(path, "rb") as file:
        begins = file.read(2) == b"PK"
    if not zipfile.is_zipfile(path):
        if begins:
            raise ValueError("it is truncated")
        return False
    with zipfile.ZipFile(path) as content:
        inside = sum(member.file_size for member in content.infolist())
    if inside > INFLATES * os.path.getsize(path) + SLACK:
        raise ValueError(f"its {os.path.getsize(path):,} bytes would become {inside:,}")
    return True


def read_tensors(path: str | Path, **how: Any) -> dict[str, Any]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        **how: keyword arguments of :func:`reading`.

    Raises:
        UserError: it cannot be read, is truncated, or is not a safetensors file.
    """
    from safetensors.torch import load_file

    with reading(path, **how):
        return load_file(path)
