"""The one door for files that somebody else may have made: plain data comes out, or one line that names the file."""

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
"""Bytes that are read of a file of that kind."""
DEEPEST = 64
"""Levels of lists and mappings in one another."""
INFLATES, SLACK = 4, 1_000_000
"""A zip file may hold so many times its own size, and so many bytes beside."""


@contextmanager
def reading(
    path: str | Path, *, error: type[UserError] = UserError, said: str = "", advice: str = "copy it again"
) -> Iterator[None]:
    """Whatever goes wrong inside is one line that names the file.

    Args:
        path: the file, which must be a regular one: pipes and devices could be waited for without an end.
        error: what is raised.
        said: how the line begins; by default that the file cannot be read.
        advice: how it ends.

    Raises:
        UserError: as ``error``; one that is raised inside passes as it is.
    """
    said = said or f"{path} cannot be read"
    try:
        refuse_irregular(path)
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as reason:  # safetensors panics with one that is no Exception
        raise error(f"{said} ({in_a_line(reason)}): {advice}") from reason


def in_a_line(reason: BaseException, most: int = 160) -> str:
    """What an exception says, in one printable line."""
    text = (getattr(reason, "strerror", None) or str(reason)).strip() or type(reason).__name__
    if isinstance(reason, MemoryError | RecursionError):
        text = type(reason).__name__
    return "".join(c if c.isprintable() else "?" for c in text.splitlines()[0][:most])


def refuse_irregular(path: str | Path) -> None:
    """Let regular files pass, and links to them.

    Raises:
        OSError: it is none; says what it is instead.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        if os.path.islink(path):
            raise OSError("a link that leads nowhere") from None
        raise
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, no regular file")


def read_text(path: str | Path, most: int = MOST_JSON, *, errors: str = "strict") -> str:
    """The text of a file of at most ``most`` bytes.

    Raises:
        OSError, ValueError: it is larger, no regular file, or no text.
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
        **how: as :func:`reading` takes it.

    Raises:
        UserError: it cannot be read, is no JSON, too large or too deep.
    """
    with reading(path, **how):
        return refuse_odd(json.loads(read_text(path)))


def read_yaml(path: str | Path, **how: Any) -> Any:
    """Plain data from a YAML file, numbers as the configurations have them; nothing is resolved.

    Args:
        path: the file.
        **how: as :func:`reading` takes it.

    Raises:
        UserError: it cannot be read, is no YAML, too large or too deep, or has parts that refer to others.
    """
    import yaml
    from omegaconf._utils import get_yaml_loader

    with reading(path, **how):
        text, depth = read_text(path, MOST_YAML), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few of them make gigabytes
                raise ValueError(f"*{event.anchor} refers to another part: expected plain values")
            opens = isinstance(event, yaml.CollectionStartEvent)
            depth += opens - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels deep")
        return refuse_odd(yaml.load(text, Loader=get_yaml_loader()))


def refuse_odd(tree: Any) -> Any:
    """Let plain data pass: text, numbers, true, false and null in lists and mappings, not too deep.

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
    """Let data pass that refer to nothing: no ``${...}``, escaped or not.

    Raises:
        ValueError: names the first that does.
    """
    for where, value, _ in walk(tree):
        texts = value if isinstance(value, dict) else (value,)
        if any(isinstance(text, str) and "${" in text for text in texts):
            raise ValueError(f"{where or 'it'} holds an interpolation, ${{...}}: expected plain values")


def walk(tree: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value of nested lists and mappings, with its dotted place and its depth; the outermost first."""
    ahead: list[tuple[str, Any, int]] = [("", tree, 0)]
    while ahead:
        where, value, depth = ahead.pop()
        yield where, value, depth
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        ahead += [(f"{where}.{key}".lstrip("."), v, depth + 1) for key, v in inner]


def refuse_inflating(path: str | Path) -> bool:
    """Whether a file is a zip file, as torch writes them: one that holds much more than its size is refused.

    Raises:
        ValueError: it does.
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
        **how: as :func:`reading` takes it.

    Raises:
        UserError: it cannot be read, is truncated, or is none.
    """
    from safetensors.torch import load_file

    with reading(path, **how):
        return load_file(path)
