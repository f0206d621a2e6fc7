"""Answers as bytes, to the bit as they were told, and the key under which each is found again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from kd_lightning.teachers.access import malformed
from kd_lightning.teachers.answer_types import Abstained, Answer, Described, Label, Probs, TopK


@dataclass(frozen=True)
class Failed:
    """The teacher will not take this image: not paid for, and nothing to train on."""

    reason: str = ""


Kept = Answer | Failed


def keys_of(teacher: Described, images: np.ndarray) -> list[bytes]:
    """SHA-256 of who is asked, in which version, how it answers, and the pixels.

    Args:
        teacher: whom.
        images: uint8 (N, H, W, C).
    """
    decimals = teacher.decimals if teacher.access in ("probs", "topk") else None
    answers = [teacher.access, decimals, teacher.k if teacher.access == "topk" else None]
    about = [teacher.name, teacher.version, answers, str(images.dtype), images.shape[1:]]
    beginning = hashlib.sha256(json.dumps(about).encode())
    keys = []
    for image in np.ascontiguousarray(images):
        key = beginning.copy()
        key.update(image.data)
        keys.append(key.digest())
    return keys


def packed(answer: Kept) -> bytes:
    """One letter for the kind, then its content."""
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
    """What was packed."""
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
    """What was packed, if the teacher can have said it.

    Raises:
        ValueError: the bytes are damaged.
    """
    answer = unpacked(told)
    if not isinstance(answer, Failed) and (wrong := malformed(answer, teacher)):
        raise ValueError(wrong)
    return answer
