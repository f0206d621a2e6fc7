"""How much longer a fit takes with boundary supporting samples than without: one ratio of one run.

    python tests/benchmarks/bss_cost.py [--epochs 150] [--repeats 3]

Both sides are the whole fit of ``experiment=bss/digits_20pct``, its logging and validation included, with the same
teacher, batches and number of updates: ``method=kd``, then ``method=bss``, alternating. Clocks count the seconds of
this process on the processor, so that a busy machine matters little. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from kd_lightning.config import resolvers
from kd_lightning.config.check import check
from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.load import dataset_digest
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import RunContext, fit
from kd_lightning.run.stages_and_controls import handed
from kd_lightning.run.teacher import obtain_teacher
from kd_lightning.store.artifacts import Store


def seconds(method: str, epochs: int, root: Path) -> float:
    """Processor seconds of one fit from scratch; its teacher is made before and kept in ``root``."""
    with initialize_config_dir(str(resolvers.conf_dir()), version_base="1.3"):
        own = [f"method={method}", f"trainer.max_epochs={epochs}", "trainer.accelerator=cpu", "data.recipe.epochs=20"]
        whole = check(compose("run", ["experiment=bss/digits_20pct", *own, f"artifacts.root={root}"]))
    dataset = load_data(whole.data, Store(root))
    bench = RunContext(Store(root), dataset, dataset_digest(dataset), Classification(dataset.num_classes), [])
    teacher = obtain_teacher(whole, bench)
    bench.store = Store(root, reuse=False)
    start = time.process_time()
    fit(whole, bench, phase=method, **handed(teacher))
    return time.process_time() - start


def main() -> None:
    """Print the two medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    quiet()
    resolvers.register()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for method in ("kd", "bss"):
            seconds(method, 2, root)
        pairs = [(seconds("kd", args.epochs, root), seconds("bss", args.epochs, root)) for _ in range(args.repeats)]
    kd, bss = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"kd {kd:.2f} s, bss {bss:.2f} s, ratio {bss / kd:.2f}  ({args.epochs} epochs, {args.repeats} repeats)")


if __name__ == "__main__":
    main()
