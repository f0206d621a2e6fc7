"""How much faster a batch of vicinities is drawn at once than label by label: one ratio of one run.

    python tests/benchmarks/vicinity_draw.py [--batch 512] [--labels 50000] [--repeats 5]

The loop below draws what CcGAN's discriminator sees: for every wanted label it compares all training labels with it,
draws noise anew until one is near, then a real image among those and a label for an image to be made. Both sides draw
from the same law, which ``tests/data/test_vicinity.py`` checks of ours. Clocks count the seconds of this process on the
processor, so that a busy machine matters little; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from kd_lightning.sources.vicinity import Vicinity


def one_by_one(vicinity: Vicinity, labels: np.ndarray, n: int, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Index of a real image, label of a made one and target, for each of ``n``."""
    index, fake, target = np.zeros(n, dtype=int), np.zeros(n), random.choice(vicinity.unique.numpy(), n)
    for j in range(n):
        base = target[j]
        while True:
            target[j] = base + random.normal(0, vicinity.sigma)
            (inside,) = np.nonzero(np.abs(labels - target[j]) <= vicinity.radius)
            if len(inside):
                break
        index[j] = random.choice(inside)
        fake[j] = random.uniform(max(0.0, target[j] - vicinity.radius), min(1.0, target[j] + vicinity.radius))
    return index, fake, target


def main() -> None:
    """Print the two medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--labels", type=int, default=50000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random, rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    labels = torch.rand(args.labels, generator=rng)
    vicinity = Vicinity(labels, kind="soft", m_kappa=5.0)
    ours, theirs = [], []
    for _ in range(args.repeats):
        start = time.process_time()
        for _ in range(20):
            vicinity.draw(args.batch, rng)
        ours.append((time.process_time() - start) / 20)
        start = time.process_time()
        one_by_one(vicinity, labels.numpy(), args.batch, random)
        theirs.append(time.process_time() - start)
    fast, slow = statistics.median(ours), statistics.median(theirs)
    print(f"at once {fast * 1e3:.2f} ms, one by one {slow * 1e3:.1f} ms, ratio {slow / fast:.0f}  (batch {args.batch})")


if __name__ == "__main__":
    main()
