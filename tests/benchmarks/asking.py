"""What asking a network of ours through the ledger costs beside the network itself.

python tests/benchmarks/asking.py [IMAGES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from kd_lightning.core.inference import predict
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.teacher import AT_ONCE
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.teachers.remote.client import LedgerClient, QueryTerms
from kd_lightning.teachers.remote.local import LocalAsker


def main(number: int) -> None:
    """Seconds of the network alone, of asking, and of finding all answers again."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (number, 1, 32, 32), dtype=torch.uint8)
    net = Normalized(LeNet5(), mean=[0.13], std=[0.31]).eval()
    described = Described("lenet5", "1", "probs", 10, max_batch=AT_ONCE)

    def timed(what: str, work: Callable[[], object]) -> None:
        start, own = time.perf_counter(), time.process_time()
        work()
        print(f"{what:24} {time.perf_counter() - start:6.2f} s, {time.process_time() - own:6.2f} s of the processor")

    with tempfile.TemporaryDirectory() as folder:
        for run in ("first", "second"):
            door = LedgerClient(LocalAsker(net, described), Path(folder, "l.sqlite"), QueryTerms(run), at_home=True)
            teacher = QueryTeacher(door, described)
            timed("the network alone", lambda: predict(net, images))
            timed(f"asked, {run} run", partial(teacher.about, images))
        batch = images[:64].float() / 255
        timed("100 batches of 64, known", lambda: [teacher(batch) for _ in range(100)])
        timed("the network on those", lambda: [net(batch) for _ in range(100)])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 26_000)
