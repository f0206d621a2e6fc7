"""Any function from images to answers is a teacher, with a ledger, retries and drift checks like every other."""

from __future__ import annotations

import gc
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from conftest import Outcome, composition
from doors import asking, pictures

from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.core.log_filters import quiet
from kd_lightning.errors import TeacherError
from kd_lightning.planning.plan import plan
from kd_lightning.results.student_files import load_student
from kd_lightning.teachers.answer_types import Abstained, Busy, Closed, Label, Probs, TopK, Unclear, Unfit
from kd_lightning.teachers.remote.function import Function

CALLABLE = ("teacher=callable", "method=kd", "source=queried", "method.label=0.0")


def asked(told: Any, access: Any = "probs") -> Any:
    return Function(lambda images: [told] * len(images), name="f", num_classes=3, access=access).ask(pictures(1))[0]


def test_what_a_function_may_say() -> None:
    assert asked([0.5, 0.25, 0.25]) == asked(np.array([0.5, 0.25, 0.25])) == asked(torch.tensor([0.5, 0.25, 0.25]))
    assert asked((0.5, 0.25, 0.25)) == Probs((0.5, 0.25, 0.25))
    assert asked({2: 0.25, 0: 0.75}, "topk") == TopK((0, 2), (0.75, 0.25))
    assert asked(2, "label") == asked(np.int64(2), "label") == asked(torch.tensor([2]).numpy()[0], "label") == Label(2)
    assert asked(None) == Abstained()
    assert asked(Abstained("too dark")) == Abstained("too dark")
    with pytest.raises(TeacherError, match=r"f: an answer is 'cat', which is no class of the data: a number"):
        asked("cat")
    with pytest.raises(TeacherError, match=r"f: an answer is <object.*, expected K probabilities"):
        asked(object())


def test_classes_are_told_by_name_too() -> None:
    def answer(told: Any, access: Any) -> Any:
        function = Function(lambda images: [told] * len(images), name="f", num_classes=3, access=access)
        function.name_classes(["cat", "Pick-up truck", "7"])
        return function.ask(pictures(1))[0]

    assert answer("pick-up_Truck", "label") == answer(1, "label") == answer("1", "label") == Label(1)
    assert answer("7", "label") == Label(2)
    assert answer({"7": 0.2, "cat": 0.7}, "topk") == TopK((0, 2), (0.7, 0.2))
    assert answer({"7": 0.1, "cat": 0.7, "pick-up truck": 0.2}, "probs") == Probs((0.7, 0.2, 0.1))
    with pytest.raises(TeacherError, match=r"an answer is 'dog', which is no class of the data: cat, pick up truck, 7"):
        answer("dog", "label")


def http_error(code: int, **headers: str) -> HTTPError:
    return HTTPError("http://api", code, "no", headers, io.BytesIO())  # type: ignore[arg-type]


class Foreign(Exception):
    """As httpx and requests have them."""

    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP {code}")
        self.response = type("Response", (), {"status_code": code, "headers": {"Retry-After": "2.5"}})


@pytest.mark.parametrize(
    ("error", "meaning", "after"),
    [
        (http_error(429, **{"Retry-After": "9"}), Busy, 9.0),
        (http_error(408), Busy, None),
        (http_error(503), Unclear, None),
        (http_error(413), Unfit, None),
        (http_error(401), Closed, None),
        (Foreign(429), Busy, 2.5),
        (URLError("no route"), Unclear, None),
        (TimeoutError("30 s"), Unclear, None),
        (Busy("as I know it", 4.0), Busy, 4.0),
        (KeyError("label"), KeyError, None),
    ],
)
def test_what_its_exceptions_mean(error: Exception, meaning: type[Exception], after: float | None) -> None:
    def fails(images: Any) -> Any:
        raise error

    with pytest.raises(meaning) as caught:
        Function(fails, name="f", num_classes=3, access="label").ask(pictures(1))
    assert getattr(caught.value, "retry_after", None) == after


def test_a_function_has_a_ledger_and_retries(tmp_path: Path) -> None:
    calls: list[int] = []

    def flaky(images: np.ndarray) -> list[int]:
        calls.append(len(images))
        if len(calls) == 2:
            raise TimeoutError
        return [int(image[0, 0, 0]) % 3 for image in images]

    door = asking(Function(flaky, name="flaky", num_classes=3, access="label", max_batch=4), tmp_path, budget=24)
    assert door.about(pictures(*range(10))) == door.about(pictures(*range(10)))
    assert sum(calls) == 10 + calls[1]
    assert (door.spent()["training"].paid, door.spent()["training"].in_doubt) == (10, calls[1])


NET: dict[str, Any] = {"seen": []}


def ours(images: np.ndarray) -> list[list[float]]:
    """A network somewhere else, as far as anybody here can tell."""
    NET["seen"].append(len(images))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    return NET["net"](x).softmax(1).tolist()


@pytest.fixture
def elsewhere(teacher_file: Path) -> list[int]:
    NET.update(net=load_student(teacher_file.parent).requires_grad_(False), seen=[])
    return NET["seen"]


@pytest.mark.slow
def test_a_teacher_without_a_network_here(tiny: Callable[..., Outcome], elsewhere: list[int], store: Path) -> None:
    settings = (*CALLABLE, f"teacher.function={__name__}.ours", "source.images=600", "teacher.price=0.01",
                "teacher.max_batch=100", "teacher.budget=600")  # fmt: skip
    names = {"data": "digits", "method": "kd"}
    quiet()
    short = ("controls=none", "trainer.accelerator=cpu", "data.recipe.epochs=2")
    planned = plan(composition(*settings, *short, names=names))
    assert {s.name: s.images for s in planned.steps} | {"teacher": 0, "student's answers": 600, "test": 0} == {
        s.name: s.images for s in planned.steps
    }
    assert any("ours: 600 images to ask about, which costs 6.00 at 0.01 each; 0 are paid" in n for n in planned.notes)
    assert elsewhere == []
    assert not store.exists()

    first = tiny(*settings)
    assert sum(elsewhere) == 600
    gc.collect()  # as at the end of its process
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    known = plan(composition(*settings, *short, "seed=1", names=names))
    assert any("ours: 0 images to ask about, which costs 0.00 at 0.01 each; 600 are paid" in n for n in known.notes)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before
    assert "teacher" not in first["models"]
    assert first["metrics"]["teacher/accuracy"] is None
    assert (first["cost"]["queries"], first["cost"]["price"], first["teacher_metrics"]) == (600, 6.0, None)
    assert first["asked"]["name"].endswith(".ours")
    second = tiny(*settings, "seed=1", "teacher.eval_budget=359")
    assert sum(elsewhere) == 600 + 16 + 359
    asking = second["cost"]["asking"]
    assert (asking["training"]["paid"], asking["evaluation"]["paid"], asking["canary"]["paid"]) == (0, 359, 16)
    assert second["cost"]["price"] == pytest.approx(3.75)
    assert second["teacher_metrics"] == "paid"
    assert second["metrics"]["teacher/accuracy"] > 0.9
    assert second["answers"] == {"student": {"images": {"asked": 600, "abstained": 0, "failed": 0}}}


def test_a_reference_is_measured_in_its_place(
    tiny: Callable[..., Outcome], elsewhere: list[int], teacher_file: Path
) -> None:
    settings = (*CALLABLE, f"teacher.function={__name__}.ours", "source.images=100", "data.recipe.batch_size=50")
    result = tiny(*settings, f"teacher.reference={teacher_file.parent}")
    assert sum(elsewhere) == 100
    assert result["teacher_metrics"] == "reference"
    assert result["metrics"]["teacher/accuracy"] > 0.9
    assert result["metrics"]["test/agreement"] is not None
    assert result["cost"]["asking"]["evaluation"]["used"] == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], r"teacher\.function: required"),
        (["teacher.function=nobody.knows"], r"teacher\.client\.function\._target_: cannot import nobody\.knows"),
        (["teacher.function=json.dumps", "teacher.access=white"], r"teacher\.access=white: a teacher that is not here"),
        (["teacher.function=json.dumps", "method=dafl", "source=free"], r"method: Dafl needs the teacher's gradients"),
        (["teacher.function=json.dumps", "teacher.reference=gone"], r"teacher\.reference: there is no gone"),
        (["teacher.function=json.dumps", "teacher.pace.tries=no"], r"teacher\.pace\.tries: expected a whole number"),
        (["teacher.function=json.dumps", "teacher.min_coverage=2"], r"teacher\.min_coverage=2: expected a share"),
        (["teacher.function=json.dumps", "teacher.net=${student}"], r"teacher\.client: there is a network, too"),
    ],
)
def test_faults_of_such_a_teacher(overrides: list[str], said: str) -> None:
    (line,) = faults(read([*CALLABLE[:2], "source=queried", *overrides]).cfg)
    assert re.match(said, line), line


def test_a_function_is_no_fault() -> None:
    assert faults(read([*CALLABLE, "teacher.function=json.dumps"]).cfg) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("teacher.access=label", "tells probs: set teacher.access=probs"),
        ("teacher.client.num_classes=7", "knows 7 cla"),
    ],
)
def test_a_teacher_that_tells_something_else(
    change: str, said: str, tiny: Callable[..., Outcome], elsewhere: list[int]
) -> None:
    fixed = ("teacher.client.access=probs",) if "access" in change else ()
    with pytest.raises(TeacherError, match=said):
        tiny(*CALLABLE, f"teacher.function={__name__}.ours", *fixed, change)
    assert elsewhere == []


@pytest.fixture
def service() -> Iterator[tuple[str, list[int]]]:
    """An API of somebody else's: base64 in, percentages by name out; it counts, and is busy at times."""
    answered: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            busy = len(answered) == 1 and self.headers["Authorization"] == "Bearer secret"
            if busy:
                answered.append(0)
            self.send_response(429 if busy else 200 if self.headers["Authorization"] == "Bearer secret" else 401)
            self.send_header("Retry-After", "0")
            self.end_headers()
            if not busy:
                answered.append(len(sent["images"]))
                said = [{"label": "3", "score": 0.9}, {"label": "5", "score": 0.06}]
                self.wfile.write(json.dumps({"predictions": [said] * len(sent["images"])}).encode())

        def log_message(self, *args: Any) -> None:
            """Be quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answered
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_example_of_the_page(
    service: tuple[str, list[int]], tiny: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answered = service
    readme = (Path(__file__).parents[2] / "docs" / "your_teacher.md").read_text()
    code = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def ask(images)" in code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert "https://api.example.com" in code
    (tmp_path / "my_api.py").write_text(code.replace("https://api.example.com", url))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_API_KEY", "secret")
    command = next(line for line in readme.splitlines() if "teacher.function=my_api.ask" in line)
    overrides = [word for word in command.split()[1:] if "budget" not in word and "images" not in word]
    result = tiny(*overrides, "source.images=32", "data.recipe.batch_size=16", "method.label=0.0")
    assert result["cost"]["queries"] == sum(answered) == 32
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"secret" in f.read_bytes()]
