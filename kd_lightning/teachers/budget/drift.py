"""Images whose answers are compared with later ones, to detect that a teacher has changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import numpy as np

from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.budget.codec import Kept, read
from kd_lightning.teachers.budget.tables import found, teacher_of


def keep(db: sqlite3.Connection, teacher: Described, images: Mapping[bytes, np.ndarray], number: int) -> bool:
    """Keep answered images, key -> uint8 (H, W, C), until there are ``number``; returns whether there are."""
    me = teacher_of(db, teacher)
    (there,) = db.execute("SELECT COUNT(*) FROM canaries WHERE teacher = ?", (me,)).fetchone()
    chosen = found(db, list(images)[: max(0, number - there)])
    for key, (i, _) in chosen.items():
        shape = ",".join(map(str, images[key].shape))
        row = (me, i, shape, images[key].tobytes())
        db.execute("INSERT OR IGNORE INTO canaries VALUES (?, ?, ?, ?)", row)
    return there + len(chosen) >= number


def kept(db: sqlite3.Connection, teacher: Described, number: int) -> list[tuple[np.ndarray, Kept]]:
    """At most ``number`` kept images, uint8 (H, W, C), each with its stored answer."""
    select = "SELECT shape, image, told FROM canaries JOIN answers ON answer = answers.id WHERE teacher = ?"
    rows = db.execute(f"{select} ORDER BY answer LIMIT ?", (teacher_of(db, teacher), number)).fetchall()
    return [
        (np.frombuffer(image, np.uint8).reshape([int(n) for n in shape.split(",")]), read(told, teacher))
        for shape, image, told in rows
    ]
