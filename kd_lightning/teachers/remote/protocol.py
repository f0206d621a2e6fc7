"""The HTTP format of queries and answers, used by both client and server.

A query is ``POST /ask``. Its body is only the pixels, uint8 in the order (N, H, W, C); its content type gives the
shape: ``application/x-kd-images; format=1; dtype=uint8; shape=16x32x32x1``. Further headers, all optional:

- ``Authorization: Bearer KEY``.
- ``If-Match: "VERSION"``: answer only as that version of the teacher (else 412).
- ``Idempotency-Key: ID``, up to 200 printable characters: the same ID with the same images is counted and answered
  once, however often it is sent, as long as the service remembers it. So a query whose answer was lost may be
  repeated.

The answer is JSON, one object for each image with its ``index`` and what the access level reveals::

    {"format": 1, "name": "LeNet5", "version": "5f0c...", "access": "probs", "answers": [
        {"index": 0, "probs": [0.98, 0.02]},                    # probs: all K
        {"index": 1, "classes": [7, 1], "probs": [0.9, 0.06]},  # topk, largest first
        {"index": 2, "label": 7},                               # label
        {"index": 3, "abstained": "not sure enough"}]}          # at any level

Every other response is ``{"error": {"code": ..., "reason": ..., "counted": false}}`` with a status of 400 or more;
``counted`` says whether the images were counted. ``GET /describe`` returns the fields of
:class:`~kd_lightning.teachers.answer_types.Described`, ``GET /count`` the number of answers so far.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from kd_lightning.teachers.answer_types import Abstained, Answer, Described, Label, Probs, TopK

FORMAT = 1
IMAGES = "application/x-kd-images"
IDENTITY = re.compile(r"[\x21-\x7e]{1,200}")
VERSION = re.compile(r"[\x21\x23-\x7e]{1,200}")
"""Characters allowed in a version, which is sent in quotes."""
SLACK = 0.01
"""Tolerance of the sum of K probabilities, in addition to their rounding."""


class Malformed(ValueError):
    """A message that violates the format; its text says how."""


def content_type(shape: Sequence[int]) -> str:
    """Content type of a query about images (N, H, W, C)."""
    return f"{IMAGES}; format={FORMAT}; dtype=uint8; shape={'x'.join(map(str, shape))}"


def shape_in(content_type: str) -> tuple[int, int, int, int]:
    """The shape (N, H, W, C) that a content type announces.

    Raises:
        LookupError: another type, format or dtype.
        Malformed: an invalid shape.
    """
    kind, *rest = (part.strip() for part in content_type.split(";"))
    told = dict(part.partition("=")[::2] for part in rest)
    found = (kind.lower(), told.get("format"), told.get("dtype"))
    if found != (IMAGES, str(FORMAT), "uint8"):
        raise LookupError(f"expected the content type {IMAGES}; format={FORMAT}; dtype=uint8; shape=NxHxWxC")
    shape = told.get("shape", "")
    if not re.fullmatch(r"\d{1,9}(x\d{1,9}){3}", shape, re.ASCII):
        raise Malformed("expected shape=NxHxWxC in the content type, four whole numbers")
    n, height, width, channels = map(int, shape.split("x"))
    return n, height, width, channels


def told(answers: Sequence[Answer], teacher: Described) -> bytes:
    """The body of an answer.

    Raises:
        ValueError: a number in it is not finite.
    """
    listed = [{"index": i, **_plain(answer)} for i, answer in enumerate(answers)]
    about = {"format": FORMAT, "name": teacher.name, "version": teacher.version, "access": teacher.access}
    return json.dumps({**about, "answers": listed}, allow_nan=False, separators=(",", ":")).encode()


def _plain(answer: Answer) -> dict[str, Any]:
    match answer:
        case Probs(values):
            return {"probs": values}
        case TopK(classes, values):
            return {"classes": classes, "probs": values}
        case Label(label):
            return {"label": label}
        case Abstained(reason):
            return {"abstained": reason}


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Malformed: it is not a JSON object, or holds NaN or Infinity.
    """

    def refuse(number: str) -> NoReturn:
        raise Malformed(f"{number} is not a number")

    try:
        found = json.loads(body, parse_constant=refuse)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise Malformed("not a JSON object")
    return found


def answers_in(found: dict[str, Any], teacher: Described, n: int) -> list[Answer]:
    """The answers to ``n`` images, each exactly once, sorted by index.

    Args:
        found: the parsed body.
        teacher: its description.
        n: number of images in the query.

    Raises:
        Malformed: an answer is missing, duplicated, of a wrong type or out of range.
    """
    listed = found.get("answers")
    if not isinstance(listed, list) or len(listed) != n:
        raise Malformed(f"{len(listed) if isinstance(listed, list) else 'no'} answers for {n} images")
    placed: dict[int, Answer] = {}
    for one in listed:
        if not isinstance(one, dict):
            raise Malformed("an answer that is not an object")
        index = one.get("index")
        if type(index) is not int or not 0 <= index < n or index in placed:
            raise Malformed(f"index {index!r:.40}, expected each of 0 to {n - 1} once")
        try:
            placed[index] = _answer(one, teacher)
        except Malformed as error:
            raise Malformed(f"answer {index}: {error}") from None
    return [placed[i] for i in range(n)]


def _answer(one: dict[str, Any], teacher: Described) -> Answer:
    classes = teacher.num_classes
    if "abstained" in one:
        if not isinstance(one["abstained"], str):
            raise Malformed("abstained: expected a reason")
        return Abstained(one["abstained"][:500].encode(errors="replace").decode())
    if teacher.access == "label":
        return Label(_class(one.get("label"), classes))
    values = one.get("probs")
    if not isinstance(values, list) or not all(type(v) in (int, float) and 0 <= v <= 1 + 1e-6 for v in values):
        raise Malformed("probs: expected a list of numbers from 0 to 1")
    rounding = 0.0 if teacher.decimals is None else len(values) * 0.5 * 10.0**-teacher.decimals
    total, tolerance = sum(values), SLACK + rounding
    if teacher.access == "topk":
        named = one.get("classes")
        if not isinstance(named, list) or not 1 <= len(named) == len(values) <= min(teacher.k, classes):
            raise Malformed(f"classes: expected as many as probs, 1 to {min(teacher.k, classes)}")
        known = tuple(_class(c, classes) for c in named)
        if len(set(known)) != len(known):
            raise Malformed("classes: one of them is named twice")
        if total > 1 + tolerance:
            raise Malformed(f"probs: they add up to {total:.4g}")
        return TopK(known, tuple(map(float, values)))
    if len(values) != classes:
        raise Malformed(f"probs: {len(values)} for {classes} classes")
    if abs(total - 1) > tolerance:
        raise Malformed(f"probs: they add up to {total:.4g}")
    return Probs(tuple(map(float, values)))


def _class(value: Any, classes: int) -> int:
    if type(value) is not int or not 0 <= value < classes:
        raise Malformed(f"{value!r:.40} is no class from 0 to {classes - 1}")
    return value


def description(teacher: Described) -> dict[str, Any]:
    """The body of ``GET /describe``."""
    return {"format": FORMAT, **asdict(teacher)}


def described_in(found: dict[str, Any]) -> Described:
    """A teacher's description of itself, from the body of ``GET /describe``.

    Raises:
        Malformed: a field is missing or invalid, or the access level reveals more than probabilities.
    """

    def take(name: str, right: bool) -> Any:
        if not right:
            raise Malformed(f"{name}={found.get(name)!r:.60}")
        return found.get(name)

    def count(name: str, least: int = 1) -> int:
        value = found.get(name)
        return take(name, type(value) is int and value >= least)

    take("format", found.get("format") == FORMAT)
    name, version, image, price = (found.get(key) for key in ("name", "version", "image", "price"))
    sides = isinstance(image, list) and len(image) == 3 and all(type(side) is int and side > 0 for side in image)
    return Described(
        name=take("name", isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()),
        version=take("version", isinstance(version, str) and VERSION.fullmatch(version) is not None),
        access=take("access", found.get("access") in ("probs", "topk", "label")),
        num_classes=count("num_classes"),
        image=None if take("image", image is None or sides) is None else tuple(image),  # type: ignore[arg-type]
        max_batch=count("max_batch"),
        decimals=None if found.get("decimals") is None else count("decimals", 0),
        k=count("k"),
        price=float(take("price", type(price) in (int, float) and 0 <= price < 1e12)),  # type: ignore[operator]
    )
