"""The command: what it composes, refuses and prints, and that its answers are the network's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from loopback import serving
from omegaconf import DictConfig, open_dict

from kd_lightning.cli.serve import main as serve
from kd_lightning.cli.serve.server import compose, service_of
from kd_lightning.config.check import examined
from kd_lightning.core.inference import predict
from kd_lightning.data.datasets.digits import load as load_digits
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.teacher_net import load_net
from kd_lightning.teachers.answer_types import Abstained, Label, Probs, TopK
from kd_lightning.teachers.remote.http import HttpTeacher

CPU = ("data=digits", "teacher=small_conv", "trainer.accelerator=cpu", "port=0")


@pytest.fixture
def cfg(teacher_file: Path, store: Path) -> Any:
    """Composes a teacher of digits with its weights."""
    return lambda *overrides: compose([*CPU, f"teacher.weights={teacher_file}", *overrides])


def digits() -> torch.Tensor:
    """Images uint8 (N, 1, 8, 8)."""
    test = load_digits().test
    assert test is not None
    return test.images[:150]


def pixels(images: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def network(cfg: DictConfig) -> Normalized:
    _, composition = examined(cfg)
    assert composition is not None
    assert composition.teacher is not None
    return load_net(composition.teacher)[0].eval()


@pytest.mark.parametrize("access", ["probs", "topk", "label"])
@pytest.mark.parametrize("decimals", [3, None])
def test_answers_over_http_are_the_networks_own(access: str, decimals: int | None, cfg: Any) -> None:
    composed = cfg(f"teacher.access={access}", f"teacher.decimals={decimals or 'null'}", "teacher.k=3")
    logits = predict(network(composed), digits())
    own = logits.double().softmax(1).numpy()
    rounded = own if decimals is None else own.round(decimals)
    with serving(service_of(composed)) as address:
        answers = HttpTeacher(address).ask(pixels(digits()))
    assert len(answers) == 150
    for told, exact, said in zip(answers, own, rounded, strict=True):
        if access == "probs":
            assert told == Probs(tuple(said))
        elif access == "topk":
            best = np.argsort(-exact)[:3]
            assert told == TopK(tuple(best), tuple(said[best]))
        else:
            assert told == Label(exact.argmax())


def test_where_it_is_not_sure_it_says_nothing(cfg: Any) -> None:
    composed = cfg("teacher.access=label")
    logits = predict(network(composed), digits())
    sure = logits.softmax(1).amax(1).sort().values
    with open_dict(composed):
        composed.teacher.abstain_below = float(sure[6:8].mean())
    service = service_of(composed)
    with serving(service) as address:
        answers = HttpTeacher(address).ask(pixels(digits()))
    assert sum(isinstance(answer, Abstained) for answer in answers) == 7
    assert all(a == Label(c) for a, c in zip(answers, logits.argmax(1).tolist(), strict=True) if isinstance(a, Label))
    assert service.teacher.version != service_of(cfg("teacher.access=label")).teacher.version


@pytest.mark.slow
def test_it_says_what_it_is(cfg: Any) -> None:
    composed = cfg("teacher.access=topk", "teacher.k=30", "max_batch=20", "images_per_minute=600")
    with open_dict(composed):
        composed.teacher.price = 0.002
    service = service_of(composed)
    assert service.teacher.image == (8, 8, 1)
    assert service.teacher.name == "SmallConvNet"
    assert (service.teacher.k, service.teacher.num_classes, service.teacher.price) == (10, 10, 0.002)
    with closing(serve.listen("127.0.0.1", 0)) as listening:
        line = serve.summary(serve.address_of(listening), service, "MY_KEY")
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+ answers for SmallConvNet, version [0-9a-f]{12}: topk \(10\), 10 classes, "
        r"images 8x8x1, 20 in a query, 600 images a minute, key in MY_KEY",
        line,
    )
    less = service_of(cfg("teacher.access=probs", "teacher.decimals=3", "name=digits", "images_per_minute=7"))
    assert (less.teacher.name, less.teacher.decimals, less.teacher.max_batch) == ("digits", 3, 7)
    assert service_of(composed).teacher.version == service.teacher.version
    assert less.teacher.version != service.teacher.version  # another access, other answers
    assert service_of(cfg("teacher.access=label", "teacher.decimals=3")).teacher.decimals is None
    assert service_of(cfg("teacher.access=label", "max_body=200")).teacher.max_batch == 3


def test_a_teacher_without_weights_is_trained_once_and_kept(
    store: Path, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("teacher.check=false", "data.recipe.epochs=2", "data.recipe.batch_size=320")
    tiny("method=kd", "teacher=small_conv")
    kept = sorted(folder.name for folder in store.glob("fit-*"))
    service = service_of(compose([*CPU, *quick, "teacher.access=label"]))
    assert sorted(folder.name for folder in store.glob("fit-*")) == kept  # the one of the run
    assert len(service.answer(pixels(digits()))) == 150


WRONG = {
    "": "teacher.access: a service tells no more than probabilities, got white: type teacher.access=probs, topk or",
    "teacher.access=logits": "teacher.access: a service tells no more than probabilities, got logits",
    "teacher=none teacher.access=label": "teacher.net: there is no network to serve: choose one with teacher=NAME",
    "teacher=lenet6": "teacher=lenet6: there is no teacher called lenet6; did you mean teacher=lenet5?",
    "teacher.weights=nothing.safetensors": "teacher.weights: there is no file nothing.safetensors",
    "teacher.acces=label": "teacher.acces: nothing reads this setting; did you mean teacher.access?",
    "data=rotated_digits teacher.access=label": "data: a service tells classes, but the labels of these data are",
    "method=kd": "method: kd-serve has no such setting",
    "prot=1": "prot: kd-serve has no such setting; did you mean port?",
    "trainer.max_epochs=3": "trainer.max_epochs: kd-serve has no such setting",
    "port=a": "port: expected a whole number, got 'a'",
    "port=70000": "port=70000: expected 0 to 65535",
    "host=3": "host: expected text, got 3",
    "max_batch=0": "max_batch=0: expected at least 1",
    "images_per_minute=0": "images_per_minute=0: expected at least 1",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_settings_are_named(overrides: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(overrides.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("kd-serve: this composition cannot run:\n")
    assert WRONG[overrides] in said


def test_all_wrong_settings_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["teacher=lenet6", "port=-1", "qrice=3"]) == 2
    lines = [line.strip().partition(":")[0] for line in capsys.readouterr().err.splitlines()[1:]]
    assert lines == ["qrice", "teacher=lenet6", "port=-1", "teacher.access"]


@pytest.mark.parametrize(
    ("override", "variable", "expected"),
    [
        ("key_env=KD_TEST_KEY", None, "key_env=KD_TEST_KEY: that environment variable is not set"),
        ("key_env=KD_TEST_KEY", "  ", "key_env=KD_TEST_KEY: that environment variable is not set"),
        ("key_env=KD_TEST_KEY", "x1 y2", "key_env=KD_TEST_KEY: the key in that variable holds a blank"),
        ("key_env=sk-12ab", None, "key_env: expected the NAME of an environment variable"),
        ("max_body=63", None, "max_body=63: an image of 8x8 has 64 bytes"),
        ("count_file=/", None, "count_file=/: "),
        ("host=192.0.2.1", None, "cannot listen on host=192.0.2.1 port=0: "),
    ],
)
def test_what_cannot_be_served_is_one_line(
    override: str,
    variable: str | None,
    expected: str,
    teacher_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if variable is not None:
        monkeypatch.setenv("KD_TEST_KEY", variable)
    assert serve.main([*CPU, f"teacher.weights={teacher_file}", "teacher.access=label", override]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"kd-serve: {expected}")
    assert said.count("\n") == 1
    assert "12ab" not in said
    assert "x1 y2" not in said


def test_an_address_that_is_taken_is_one_line() -> None:
    with closing(serve.listen("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on host=127.0.0.1 port={port}: .*port=0 for any"):
            serve.listen("127.0.0.1", port)


def test_without_the_extra_it_says_what_to_install(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = cfg("teacher.access=label")
    for module in ("limits", "app"):
        monkeypatch.delitem(sys.modules, f"kd_lightning.cli.serve.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[http\]'"):
        service_of(composed)


def test_help_is_a_page_that_needs_no_torch() -> None:
    program = """
import sys
from kd_lightning.cli.serve.main import main
try:
    main(["--help"])
except SystemExit:
    assert not {"torch", "numpy", "starlette", "hydra"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 120
    for word in ("host=127.0.0.1", "port=", "key_env=", "requests_per_minute=", "teacher.weights=", "POST /ask"):
        assert word in done.stdout


@pytest.mark.slow
def test_the_command_from_start_to_end(teacher_file: Path, tmp_path: Path) -> None:
    key = "Zm9vYmFyLXNlY3JldA"
    command = [*CPU, f"teacher.weights={teacher_file}", "teacher.access=probs", "teacher.decimals=3"]
    command += ["key_env=MY_KEY", f"count_file={tmp_path / 'count'}", "host=0.0.0.0"]
    environment = {**os.environ, "MY_KEY": key, "KD_ARTIFACTS": str(tmp_path / "store"), "OTHER_KEY": key}
    with subprocess.Popen(
        [sys.executable, "-m", "kd_lightning.cli.serve.main", *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "probs with 3 decimals, 10 classes, images 8x8x1, 500 in a query, key in MY_KEY" in line
        client = HttpTeacher(line.split()[0].replace("0.0.0.0", "127.0.0.1"), key_env="OTHER_KEY")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTHER_KEY", key)
            answers = client.ask(pixels(digits())[:20])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out == ""
    assert err == (
        "kd-serve: warning: 0.0.0.0 is not a loopback address: other machines can send queries with the key\n"
        "kd-serve: answered 1 queries, 20 images\n"
    )
    assert [json.loads(each)["images"] for each in (tmp_path / "count").read_text().splitlines()] == [20]
    assert all(isinstance(answer, Probs) and answer.values == tuple(np.round(answer.values, 3)) for answer in answers)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(key.encode() not in file.read_bytes() for file in written)
    assert key not in line
