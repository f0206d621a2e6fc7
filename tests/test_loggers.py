"""What the dashboards get."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")


def records(path: Path) -> Iterator[Any]:
    """A .wandb file without a server: 32 KiB blocks of LevelDB's log, a protobuf in each record."""
    data, position, part = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            record = pb.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def read(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = {"config": {}, "history": []}
    for record in records(path):
        if (kind := record.WhichOneof("record_type")) == "run":
            run["meta"] = record.run
            updates = record.run.config.update
        else:
            updates = record.config.update if kind == "config" else []
        run["config"] |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
        if kind == "history":
            run["history"].append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item})
    return run


@pytest.mark.slow
def test_wandb_gets_curves_pictures_metrics_and_the_composition(tiny: Callable[..., Any]) -> None:
    result = tiny("logger=wandb_offline")
    (file,) = result.folder.glob("wandb/offline-run-*/*.wandb")
    run = read(file)
    assert run["meta"].project == "kd_lightning"
    assert run["meta"].job_type == "dafl"
    assert run["meta"].display_name.startswith("dafl-")
    assert run["config"]["method"]["latent"] == 8
    keys = {key for row in run["history"] for key in row}
    assert {"train/kd", "val/accuracy", "test/accuracy", "teacher/accuracy", "generated"} <= keys
    accuracy = next(row["test/accuracy"] for row in run["history"] if "test/accuracy" in row)
    assert accuracy == pytest.approx(result["metrics"]["test/accuracy"])
    pictures = list(file.parent.glob("files/media/images/*.png"))
    assert len(pictures) >= 16
    assert all(Image.open(picture).getextrema()[1] > 0 for picture in pictures)  # a float image would be black


@pytest.mark.slow
def test_a_dashboard_that_comes_after_the_fit_gets_its_curves(tiny: Callable[..., Any]) -> None:
    tiny()
    result = tiny("logger=wandb_offline")
    (file,) = result.folder.glob("wandb/offline-run-*/*.wandb")
    assert {"train/kd", "val/accuracy"} <= {key for row in read(file)["history"] for key in row}
