"""How much faster two slots finish a grid than one process after the other.

    python tests/benchmarks/grid.py --jobs 12 --epochs 10

Both sides run the default on digits with seeds 0, 1, ...: the same one-thread processes, once in turn as
``python -m kd_lightning.cli.main seed=N``, once as ``sweep=seeds seed=range(JOBS)`` on two slots. Each side has a store
of its own, new but for the teacher, which is trained before the clock runs. The sides must agree on every accuracy.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 0.5


def timed(*command: str, store: Path, cwd: Path) -> float:
    """Seconds that a command takes, with a store and one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KD_ARTIFACTS": str(store), "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "kd_lightning.cli.main", *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
    return time.perf_counter() - start


def results(folder: Path, jobs: int) -> list[dict]:
    """What the jobs in a folder left, by seed."""
    found = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    assert len(found) == jobs
    return sorted(found, key=lambda result: result["seed"])


def main() -> None:
    """Print both times and their ratio; exit with 1 above the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of the student, for shorter jobs (default: the composition's)")
    parser.add_argument("overrides", nargs="*", help="further overrides of every job, such as controls=none")
    args = parser.parse_args()
    overrides = [*args.overrides, *([f"trainer.max_epochs={args.epochs}"] if args.epochs else [])]
    slots = "hydra.launcher.slots=[" + ",".join(['""'] * args.slots) + "]"
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        # also warms the disk's cache; of other seeds and methods, so that nothing but the teacher is of use again
        first = timed(
            "method=kd", "controls=none", "seed=1000", "hydra.run.dir=first_run", store=here / "first", cwd=here
        )
        print(f"the teacher and a warm disk: {first:.1f} s", flush=True)
        for store in ("turn", "slots"):
            shutil.copytree(here / "first", here / store)
        one = [*overrides, "side_by_side=false"]
        alone = [
            timed(*one, f"seed={seed}", f"hydra.run.dir=turn_runs/{seed}", store=here / "turn", cwd=here)
            for seed in range(args.jobs)
        ]
        print(f"{args.jobs} in turn: {sum(alone):.1f} s ({statistics.mean(alone):.1f} s each)", flush=True)
        many = ["sweep=seeds", f"seed=range({args.jobs})", slots, "hydra.sweep.dir=slot_runs"]
        sweep = timed(*many, *overrides, store=here / "slots", cwd=here)
        print(f"{args.jobs} on {args.slots} slots: {sweep:.1f} s", flush=True)
        pairs = zip(results(here / "turn_runs", args.jobs), results(here / "slot_runs", args.jobs), strict=True)
        for left, right in pairs:
            assert not left["stored"]
            assert not right["stored"]
            assert left["metrics"] == right["metrics"], f"seed {left['seed']} differs"
    ratio = sweep / sum(alone)
    print(f"ratio {ratio:.3f} (target at most {TARGET})")
    sys.exit(ratio > TARGET)


if __name__ == "__main__":
    main()
