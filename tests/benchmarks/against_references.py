"""The authors' own code beside ours: same weights, latents, batch and mathematics, in full precision.

    python tests/benchmarks/against_references.py --references DIR [--steps 20] [--rates 1] [--rounds 5] [--timed 4]
        [--batch N] [--threads 2] [--fast] [--compile] [--json FILE] [NAME ...]

DIR holds checkouts, which nothing here fetches: DAFL (huawei-noah/DAFL), RDSKD (PengchaoHan/RDSKD), DFAD
(VainF/Data-Free-Adversarial-Distillation), ZSKT (polo5/ZeroShotKnowledgeTransfer), DeepInversion
(NVlabs/DeepInversion), DataFree (zju-vipa/DataFree), Fast (zju-vipa/Fast-Datafree), CMI (zju-vipa/CMI), NAYER
(tmtuan1307/NAYER), KD_UDA (LIVIAETS/KD_UDA). Their scripts are executed as they are, until enough backward passes were
seen; CUDA, data sets and loggers that they ask for are stood in for.

First the losses are compared over ``--steps`` steps of a small batch, relative where they exceed 1: in the first step,
over all of them, and over all of them in double precision, where what rounding did to the others is gone. Where steps
multiply even that, as those of CMI, NAYER and FastDFKD do, ``--rates 1e-4`` makes them small. Then steps are timed, in
rounds of theirs, ours, theirs, ours ...; ours runs under Lightning with everything that a run has, with ``--fast`` once
more in each round with channels last, the teacher's batch norms folded and, where the CPU multiplies in it, bf16, and
with ``--compile`` once more like that with teacher and student compiled. Ratios are those of the medians over rounds.
What does not run is listed with its reason.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from references import cmi, dafl, datafree, deep_inversion, dfad, fast, kd_uda, nayer, rdskd, zskt
from references.observed import Trace, at_rates, in_double
from references.sides import At

from kd_lightning.core.log_filters import quiet
from kd_lightning.distributed.device import fast_precision

RATIOS = {"ours": "ratio", "fast": "fast_ratio", "compiled": "compiled_ratio"}
CHECKED = 16
"""Images of a step where losses are compared."""


@dataclass(frozen=True)
class System:
    """One row.

    Args:
        checkout: folder of the authors' code.
        run: runs theirs; returns its trace, and ours.
        passes: backward passes of a step, theirs and ours.
        cycle: steps after which something comes that belongs to their cost, on either side.
        pause: steps after which something comes that does not belong to it.
        batch: images of a step.
        most: ratio that is wanted at most, as composed and with ``--fast``.
    """

    checkout: str
    run: Callable[[At], tuple[Trace, Any]]
    passes: tuple[int, int] = (1, 1)
    cycle: tuple[int, int] = (1, 1)
    pause: int = 0
    batch: int = 32
    most: tuple[float | None, float | None] = (None, None)


SYSTEMS = {
    "zskt": System("ZSKT", zskt.zskt, (11, 11), batch=32, most=(0.45, 0.25)),
    "rdskd_student": System("RDSKD", rdskd.student, cycle=(10, 120), batch=512, most=(0.60, 0.40)),
    "dafl_cifar": System("DAFL", dafl.cifar10, (1, 2), batch=16, most=(0.85, 0.40)),
    "rdskd": System("RDSKD", rdskd.generator, batch=128, most=(0.95, 0.40)),
    "dfad": System("DFAD", dfad.dfad, (6, 6), batch=128, most=(0.95, 0.40)),
    "dfad_dense": System("DFAD", dfad.dense, (6, 6), batch=2, most=(0.90, None)),
    "fast": System("Fast", fast.inner, cycle=(fast.INNER, fast.INNER), pause=fast.INNER, most=(0.95, 0.40)),
    "cmi": System("CMI", cmi.synthesis, cycle=(fast.INNER, fast.INNER), pause=fast.INNER),
    "nayer": System("NAYER", nayer.synthesis, cycle=(fast.INNER, fast.INNER), pause=fast.INNER, batch=40),
    "memory": System("Fast", fast.memory, cycle=(fast.PASS, 10), most=(0.50, 0.40)),
    "dafl": System("DAFL", dafl.mnist, (1, 2), batch=128),
    "uda_kd": System("KD_UDA", kd_uda.joint, (2, 2), batch=32, most=(0.9, None)),
    "dfq": System("DataFree", datafree.dfq, (11, 11)),
    "deep_inversion": System("DeepInversion", partial(deep_inversion.inversion, compete=0.0)),
    "adaptive_deep_inversion": System("DeepInversion", partial(deep_inversion.inversion, compete=10.0)),
}


def gaps(system: System, folder: Path, batch: int, steps: int, rates: float, *, double: bool) -> list[float]:
    """How far the losses of each step differ, in units of theirs above 1, with learning rates times ``rates``."""
    with at_rates(rates), in_double() if double else nullcontext():
        torch.manual_seed(0)
        passes, our_passes = system.passes
        theirs, ours = system.run(At(folder, batch, steps * passes + 1, checking=True))
        mine = Trace(theirs.drawn)
        ours.run(mine, steps * our_passes + 1, fast=False)
    pairs = zip(theirs.sums(passes, steps), mine.sums(our_passes, steps), strict=True)
    return [abs(a - b) / max(1, abs(a)) for a, b in pairs]


def round_of(
    system: System, folder: Path, batch: int, timed: int, seed: int, *, fast: bool, compiled: bool
) -> dict[str, float]:
    """Seconds of a step of each side, one after the other."""
    torch.manual_seed(seed)
    # one step to warm up, then at least ``timed`` in whole cycles
    limits = [p * (1 + -(-timed // c) * c) + 1 for p, c in zip(system.passes, system.cycle, strict=True)]
    theirs, ours = system.run(At(folder, batch, limits[0], checking=False))
    seconds = {"theirs": theirs.seconds(system.passes[0], system.pause)}
    for name in ("ours", *(["fast"] if fast else []), *(["compiled"] if compiled else [])):
        mine = Trace(theirs.drawn)
        ours.run(mine, limits[1], fast=name != "ours", compiled=name == "compiled")
        seconds[name] = mine.seconds(system.passes[1], system.pause)
    return seconds


def measured(system: System, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One row as plain data."""
    batch = args.batch or system.batch
    row: dict[str, Any] = {"batch": batch, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.steps:
        at = (system, folder, min(batch, CHECKED), args.steps, args.rates)
        single, double = (gaps(*at, double=d) for d in (False, True))
        row |= {"steps": args.steps, "gap_first": single[0], "gap": max(single), "gap_double": max(double)}
        gc.collect()
    rounds = []
    for seed in range(args.rounds):
        rounds.append(round_of(system, folder, batch, args.timed, seed, fast=args.fast, compiled=args.compile))
        gc.collect()
    if rounds:
        row["seconds"] = {side: [each[side] for each in rounds] for side in rounds[0]}
        medians = {side: statistics.median(seconds) for side, seconds in row["seconds"].items()}
        row |= {RATIOS[side]: s / medians["theirs"] for side, s in medians.items() if side in RATIOS}
        row |= {"most": system.most[0], "fast_most": system.most[1]}
        row["fast_precision"] = fast_precision("cpu")
    return row


def line(name: str, row: dict[str, Any]) -> str:
    """A row as it is printed."""
    if "error" in row:
        return f"{name:24} does not run: {row['error']}"
    cells = [f"{name:24}", f"{row['batch']:5}"]
    cells += [f"{row[key]:9.1e}" if key in row else f"{'':9}" for key in ("gap_first", "gap", "gap_double")]
    seconds = row.get("seconds", {})
    cells += [f"{statistics.median(seconds[key]) * 1e3:9.1f}" for key in seconds]
    for key in RATIOS.values():
        if key in row:
            most = row["most" if key == "ratio" else "fast_most"]
            cells.append(f"{row[key]:6.3f}" + (f" (at most {most:.2f})" if most else f"{'':15}"))
    return " ".join(cells)


def main() -> None:
    """Print one line per system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--references", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--steps", type=int, default=20, help="steps whose losses are compared; 0: none")
    parser.add_argument("--rates", type=float, default=1.0, help="factor of all learning rates in those steps")
    parser.add_argument("--rounds", type=int, default=5, help="of theirs and ours in turn; 0: no timing")
    parser.add_argument("--timed", type=int, default=4, help="steps of a round, at least")
    parser.add_argument("--batch", type=int, help="in place of each row's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fast", action="store_true", help="also time ours with its settings for speed")
    parser.add_argument("--compile", action="store_true", help="also time that with teacher and student compiled")
    parser.add_argument("--json", type=Path, help="append each row to this file")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SYSTEMS))
    args = parser.parse_args()
    if unknown := set(args.names) - set(SYSTEMS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: take {', '.join(SYSTEMS)}")
    quiet()
    torch.set_num_threads(args.threads)
    further = [name for name in ("fast", "compile") if getattr(args, name)]
    heads = ["1st gap", "gap", "in fp64", "theirs ms", "ours", *further]
    print(f"{'system':24} batch", *(f"{head:>9}" for head in heads), " ratio", flush=True)
    for name in args.names or SYSTEMS:
        system = SYSTEMS[name]
        try:
            row = measured(system, args.references.resolve() / system.checkout, args)
        except Exception as error:  # whatever a checkout fails with
            row = {"error": f"{type(error).__name__}: {error}"}
        print(line(name, row), flush=True)
        if args.json:
            with args.json.open("a") as out:
                out.write(json.dumps({"system": name, **row}) + "\n")


if __name__ == "__main__":
    main()
