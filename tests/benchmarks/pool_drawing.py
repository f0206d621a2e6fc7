"""Which part of the time that a pool takes is spent inside the generator and the density ratio.

    python tests/benchmarks/pool_drawing.py [--per-label 600] [--repeats 3] [overrides ...]

Composes ``experiment=cgan_kd/mnist_small`` with the overrides, and draws its pool from networks of that size that have
learned nothing, as a run would draw it: burn-in, rejection, rounding, writing the files, reading them. One thread.
Hooks around the forwards of the two networks keep the time; what is left is everything else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import cast

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn

from kd_lightning.config import resolvers
from kd_lightning.config.check import check
from kd_lightning.config.composition import Composition
from kd_lightning.config.node import Node
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.sources.context import Context
from kd_lightning.sources.synthetic import Synthetic
from kd_lightning.store.artifacts import Store


class Clock:
    """Seconds inside the forwards of some networks, by name."""

    def __init__(self, **networks: nn.Module) -> None:
        self.inside = dict.fromkeys(networks, 0.0)
        for name, net in networks.items():
            net.register_forward_pre_hook(lambda *args: setattr(self, "began", time.perf_counter()))
            net.register_forward_hook(lambda *args, name=name: self._stop(name))

    def _stop(self, name: str) -> None:
        self.inside[name] += time.perf_counter() - self.began  # type: ignore[attr-defined]


def source_of(composition: Composition, folder: Path) -> Synthetic:
    """The composition's source, its networks' weights in files."""
    torch.manual_seed(0)
    for key in ("generator", "ratio"):
        net = cast(Node, Node.of(composition.source[key])).build()
        state = {k: v.contiguous().clone() for k, v in net.state_dict().items()}
        save_file(state, folder / f"{key}.safetensors")
    files = {"weights": str(folder / "generator.safetensors"), "ratio_weights": str(folder / "ratio.safetensors")}
    source = composition.source.replace(keep=None, images=None, **files).build()
    assert isinstance(source, Synthetic)
    return source


def main() -> None:
    """Print the wall time of a pool, and the shares of the two networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-label", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    args, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    resolvers.register()
    with initialize_config_dir(str(resolvers.conf_dir()), version_base="1.3"):
        experiment = ["experiment=cgan_kd/mnist_small", f"source.per_label={args.per_label}"]
        composition = check(compose("run", [*experiment, *overrides]))
    data = composition.data
    shape, classes = (data.channels, data.size, data.size), [str(i) for i in range(data.num_classes)]
    real = Split(torch.zeros(len(classes), *shape, dtype=torch.uint8), torch.arange(len(classes)))
    dataset = Dataset("nothing", classes, real, None, None, "none", "none")
    shares = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as place:
            source = source_of(composition, Path(place))
            assert source.ratio is not None
            clock = Clock(generator=source.generator, ratio=source.ratio)
            context = Context(dataset, None, Store(place), {}, list(data.mean), list(data.std))
            start = time.perf_counter()
            images = len(source.prepare(context).images)
            wall = time.perf_counter() - start
        shares.append(sum(clock.inside.values()) / wall)
        parts = ", ".join(f"{name} {seconds / wall:.3f}" for name, seconds in clock.inside.items())
        print(f"{images:,} images in {wall:.2f} s: {parts}, inside networks {shares[-1]:.3f}")
    print(f"median share inside networks {statistics.median(shares):.3f}, asked: over 0.85")


if __name__ == "__main__":
    main()
