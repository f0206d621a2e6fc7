"""Answers as bytes, bit-exact, and the cache key of a query."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from kd_lightning.core.mapped import let_go
from kd_lightning.teachers.access import malformed
from kd_lightning.teachers.answer_types import Abstained, Answer, Described, Label, Probs, TopK

AT_ONCE = 256
"""Images of a file that are in memory while their keys are computed."""


@dataclass(frozen=True)
class Failed:
    """The teacher rejects this image: not paid for, and no target."""

    reason: str = ""


Kept = Answer | Failed


def keys_of(teacher: Described, images: np.ndarray) -> list[bytes]:
    """Cache keys of images: SHA-256 of the teacher's name and version, its access level and the pixels.

    Args:
        teacher: the teacher to query.
        images: uint8 (N, H, W, C).
    """
    decimals = teacher.decimals if teacher.access in ("probs", "topk") else None
    answers: list[object] = [teacher.access, decimals, teacher.k if teacher.access == "topk" else None]
    answers += ["several"] if teacher.several else []
    about = [teacher.name, teacher.version, answers, str(images.dtype), images.shape[1:]]
    beginning = hashlib.sha256(json.dumps(about).encode())
    keys = []
    for i, image in enumerate(images):
        key = beginning.copy()
        key.update(np.ascontiguousarray(image).data)
        keys.append(key.digest())
        if i % AT_ONCE == AT_ONCE - 1:
            let_go(images)
    return keys


def packed(answer: Kept) -> bytes:
    """An answer as bytes: one letter for its type, then its content."""
    match answer:
        case Probs(values):
            return b"p" + np.array(values, np.float64).tobytes()
        case TopK(classes, values):
            return b"t" + np.array(classes, np.int64).tobytes() + np.array(values, np.float64).tobytes()
        case Label(label):
            return b"l" + np.int64(label).tobytes()
        case Abstained(reason):
            return b"a" + reason.encode()
        case Failed(reason):
            return b"f" + reason.encode()


def unpacked(told: bytes) -> Kept:
    """The answer in packed bytes."""
    kind, content = told[:1], told[1:]
    match kind:
        case b"p":
            return Probs(tuple(np.frombuffer(content, np.float64).tolist()))
        case b"t":
            half = len(content) // 2
            classes, values = np.frombuffer(content[:half], np.int64), np.frombuffer(content[half:], np.float64)
            return TopK(tuple(classes.tolist()), tuple(values.tolist()))
        case b"l":
            return Label(int(np.frombuffer(content, np.int64)[0]))
        case b"a":
            return Abstained(content.decode())
        case b"f":
            return Failed(content.decode())
    raise ValueError(f"no answer begins with {kind!r}")


def read(told: bytes, teacher: Described) -> Kept:
    """The answer in packed bytes, checked to be a valid answer of this teacher.

    Raises:
        ValueError: the bytes are damaged.
    """
    answer = unpacked(told)
    if not isinstance(answer, Failed) and (wrong := malformed(answer, teacher)):
        raise ValueError(wrong)
    return answer
