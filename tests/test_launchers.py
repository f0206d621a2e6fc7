import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import composed

from kd_lightning.config import resolvers
from kd_lightning.config.overrides import jobs, swept
from kd_lightning.core.extras import install
from kd_lightning.results.run_index import collect
from kd_lightning.results.table import fold, render

RECORDER = """
import json, sys
from pathlib import Path

folder = next(word for word in sys.argv if word.startswith("hydra.run.dir=")).split("=", 1)[1].strip('"')
seed = int(next(word for word in sys.argv if word.startswith("seed="))[5:])
result = {"format_version": 1, "status": "ok", "reason": None, "system": "kd", "data": "digits", "seed": seed,
          "metrics": {"test/accuracy": seed / 10}, "objective": seed / 10}
Path(folder, "result.json").write_text(json.dumps(result))
Path(folder, "line").write_text(" ".join(sys.argv[1:]))
"""

SLURM = {
    "sbatch": """
cp "$1" "$(dirname "$0")/submitted.sh"
for task in 0 1; do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NAME=kd-lightning SLURM_NTASKS=1 \\
  SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=node \\
  bash "$1" > /dev/null 2>&1 &
done
echo "Submitted batch job 42"
""",
    "srun": """
while ! [ -x "$1" ]; do shift; done
exec "$@"
""",
    "sacct": "echo 'JobID|State|NodeList'\n",
    "scontrol": "",
}


@pytest.fixture
def run(tmp_path):
    """Runs the command in an empty folder, with recorders in place of jobs."""
    (tmp_path / "recorder.py").write_text(RECORDER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KD_", "HYDRA_", "SLURM_"))}
    environment |= {"KD_ARTIFACTS": str(tmp_path / "artifacts"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Ray keeps a token in the user's home and lets jobs wait for whatever else the machine does
    environment |= {"HOME": str(tmp_path), "RAY_worker_niceness": "0"}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def run(*overrides):
        command = [sys.executable, "-m", "kd_lightning.cli.main", *overrides, "hydra.sweep.dir=out"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def line(folder):
    return (folder / "line").read_text().split()


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [
        (["sweep=seeds"], ["0", "1", "2"]),
        (["sweep=seeds", "seed=range(5)"], ["0", "1", "2", "3", "4"]),
        (["sweep=seeds_all", "seed=7"], ["7"]),
    ],
)
def test_the_group_varies_the_seed_unless_the_command_line_does(overrides, seeds):
    resolvers.register()
    found = jobs([*swept(overrides), *overrides])
    assert [[o for o in job if o.startswith("seed=")] for job in found] == [[f"seed={seed}"] for seed in seeds]
    assert all(f"sweep={overrides[0][6:]}" in job for job in found)


def test_a_job_of_a_sweep_is_no_sweep():
    resolvers.register()
    assert swept(["seed=1"]) is None
    assert swept(["sweep=seeds", "seed=1", "hydra.mode=RUN"]) is None


@pytest.mark.slow
def test_other_groups_are_crossed_with_the_sweep_and_resume_goes_on_with_it(run, tmp_path):
    recorded = ["sweep=seeds", "method=kd,dafl", "hydra.launcher.module=recorder"]
    ended = run(*recorded)
    assert ended.returncode == 0, ended.stderr
    given = [[o for o in line(tmp_path / "out" / str(n)) if o.startswith(("seed", "method"))] for n in range(6)]
    assert given == [[f"seed={seed}", f"method={method}"] for seed in (0, 1, 2) for method in ("kd", "dafl")]
    assert "seeds that varied: seed (0, 1, 2)" in ended.stdout
    (tmp_path / "out" / "4" / "result.json").unlink()
    again = run(*recorded, f"sweep.resume={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is done already") == 5


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(path.stem for path in (resolvers.conf_dir() / "source").glob("*.yaml")))
def test_seeds_all_ties_every_seed_of_every_source(source):
    cfg = composed("sweep=seeds_all", "seed=7", f"source={source}")
    assert cfg.teacher.seed == 7
    assert cfg.source.get("seed", 7) == 7, f"conf/source/{source}.yaml: let its seed be ${{sweep.source_seed}}"
    plain = composed(f"source={source}", "seed=7")
    assert (plain.teacher.seed, plain.source.get("seed", 0)) == (0, 0)


def test_the_table_says_which_seeds_varied_and_counts_them_as_runs(tmp_path):
    for seed in (0, 1):
        hydra = tmp_path / str(seed) / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "overrides.yaml").write_text(f"[seed={seed}, sweep=seeds_all]")
        (hydra / "config.yaml").write_text(f"seed: {seed}\nteacher: {{seed: '${{seed}}'}}\nsource: {{rounds: 3}}")
        result = {"format_version": 1, "status": "ok", "seed": seed, "metrics": {"test/accuracy": 0.9 + seed / 10}}
        (tmp_path / str(seed) / "result.json").write_text(json.dumps(result))
    table = render(fold(collect([tmp_path])))
    assert "0.9500 ± 0.0707" in table
    assert "seeds that varied: seed (0, 1), teacher.seed (0, 1)" in table
    assert "source.seed" not in table


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_slurm", "ray"])
def test_a_launcher_that_is_not_there_or_cannot_resume_says_what_to_do(run, launcher):
    ended = run("sweep=seeds", f"hydra/launcher={launcher}", "sweep.resume=out")
    assert ended.returncode == 2
    assert f"sweep.resume: hydra/launcher={launcher} knows no resuming" in ended.stderr
    package = {"submitit_slurm": "submitit", "ray": "ray"}[launcher]
    try:
        __import__(package)
    except ImportError:
        extra = {"submitit_slurm": "slurm", "ray": "ray"}[launcher]
        assert f"hydra/launcher={launcher}: not installed; type {install(extra)}" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm", "ray"])
def test_a_launcher_of_many_machines_on_this_one(run, launcher, tmp_path):
    pytest.importorskip("ray" if launcher == "ray" else "submitit")
    if launcher == "submitit_slurm":
        (tmp_path / "bin").mkdir()
        for name, script in SLURM.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}")
            (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bad.safetensors").write_text("no weights")
    ended = run(
        "-m", f"hydra/launcher={launcher}", f"init={tmp_path / 'bad.safetensors'},null",
        "method=supervised", "teacher=none", "controls=none", "debug=smoke",
    )  # fmt: skip
    assert ended.returncode == 1
    assert "bad.safetensors is truncated, corrupt or no weights at all" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "is validated against ConfigStore" not in ended.stderr
    runs = {run.folder.name: run for run in collect([tmp_path / "out"])}
    assert [runs[number].status for number in ("0", "1")] == ["failed", "ok"]
    assert runs["1"].result["metrics"]["test/accuracy"] > 0
    if launcher == "submitit_slurm":
        asked = Path(tmp_path, "bin", "submitted.sh").read_text()
        for line in ("--array=0-1%2", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=4", "--time=720"):
            assert f"#SBATCH {line}" in asked
