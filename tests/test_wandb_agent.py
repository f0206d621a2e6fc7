"""W&B's own agent runs the sweep of the documentation, end to end, on a server that stands in for W&B's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from conftest import TINY
from test_docs import PAGES, blocks
from test_loggers import read

pytest.importorskip("wandb")
CHOSEN = {"method.optimizer.lr": 0.003, "seed": 2}
"""What the server tells the agent to run."""


class StandIn(BaseHTTPRequestHandler):
    """As much of W&B's server as an agent asks: one sweep, and one job in it."""

    sweep = ""
    asked: ClassVar[list[str]] = []
    states: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query, given = wanted["query"], wanted.get("variables") or {}
        self.asked.append(query)
        if "agentHeartbeat" in query:
            self.states.append(json.loads(given["runState"]))
            args = {key: {"value": value} for key, value in CHOSEN.items()}
            job = {"type": "run", "run_id": "run00001", "program": "kd-lightning", "args": args}
            commands = json.dumps([job] if len(self.states) == 1 else [])
            data: dict[str, Any] = {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": commands}}
        elif "createAgent" in query:
            data = {"createAgent": {"agent": {"id": "agent"}}}
        elif "SweepWithRuns" in query:
            data = {"project": {"sweep": {"id": "id", "name": "sweep001", "config": self.sweep, "runs": {"edges": []}}}}
        else:
            data = {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_an_agent_runs_the_sweep_as_written(address: str, tmp_path: Path) -> None:
    (page,) = (page for page in PAGES if page.name == "wandb.md")
    sweep = yaml.safe_load(blocks(page, "yaml")[0])
    sweep["command"][-1:-1] = [*TINY, "trainer.max_epochs=1", "data.recipe.epochs=1", "hydra.run.dir=run"]
    StandIn.sweep = yaml.safe_dump(sweep)
    places = dict.fromkeys(
        ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), str(tmp_path)
    )
    own = places | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}
    own |= {"KD_ARTIFACTS": str(tmp_path / "store"), "no_proxy": "*", "NETRC": str(tmp_path / "none")}
    own |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "wandb", "agent", "--count", "1", "me/kd/sweep001"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"run00001": True} in StandIn.states, "the agent has started it"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["seed"]) == ("ok", 2), done.stderr
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    run = read(file)
    assert (run["meta"].run_id, run["meta"].sweep_id) == ("run00001", "sweep001"), "it is this sweep's when it is sent"
    assert run["config"]["method"]["optimizer"]["lr"] == CHOSEN["method.optimizer.lr"]
    assert sweep["metric"]["name"] in {key for row in run["history"] for key in row}
