"""KD_UDA (LIVIAETS): ``mmd_hinton_train_alt`` of ``kd_da_alt.py``, with its networks in training mode."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kd_lightning.data.batches import Batch, StreamsBatch
from kd_lightning.methods.domain_adaptation.uda_kd import UdaKd
from references.observed import Trace, copied, importable, traced
from references.sides import At, Ours, method, sgd

STEPS = 40
PLAIN: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}


class Pairs:
    """Images of one domain with labels, as their loop asks for them: ``iter(loader).next()``."""

    def __init__(self, images: list[Tensor], labels: list[Tensor]) -> None:
        self.images, self.labels, self.batch_size = images, labels, len(images[0])

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Pairs:
        self.place = -1
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        self.place += 1
        return self.images[self.place], self.labels[self.place]

    next = __next__


class Domains:
    """The same images as batches of two streams."""

    def __init__(self, source: Pairs, target: Pairs) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[StreamsBatch]:
        for x, y, t in zip(self.source.images, self.source.labels, self.target.images, strict=True):
            yield StreamsBatch(Batch(x, y), Batch(t, None))


def joint(at: At) -> tuple[Trace, Ours]:
    """ResNet-18 to ResNet-18 on 32x32: a step of the teacher, a step of both on the distillation."""
    theirs = Trace()
    count = max(STEPS, at.limit // 2 + 1)
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, count, at.batch, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (count, at.batch), generator=draw)
    source, target = (Pairs([*each], [*labels]) for each in (images[0], (0.5 * images[1]).sqrt()))
    with (
        patch.dict(os.environ, {"SAVE_DIR": str(at.folder)}),
        importable(at.folder, "visdom_logger", "visdom_logger.logger", "dotenv"),
    ):
        main = importlib.import_module("kd_da_alt")
        teacher, student = (main.DAN_model.DANNet_ResNet(main.ResNet.resnet18, False, 10) for _ in range(2))
        mine = [resnet18(num_classes=10) for _ in range(2)]
        for his, own in zip((teacher, student), mine, strict=True):
            his.sharedNet.avgpool = nn.AdaptiveAvgPool2d(1)  # theirs is for 224 pixels
            body = {k: v for k, v in his.sharedNet.state_dict().items() if not k.startswith("fc.")}
            own.load_state_dict(body, strict=False)
            copied(his.cls_fc, own.fc)
        made = method(
            UdaKd,
            *mine,
            PLAIN,
            teacher_init="source",
            variant="code",
            optimizer=partial(sgd, lr=1e-3, weight_decay=5e-4),
            optimizer_t=partial(sgd, lr=1e-3, weight_decay=5e-4),
        )
        everything = [*teacher.parameters(), *student.parameters()]
        opts = [torch.optim.SGD(everything, 1e-3, momentum=0.9, weight_decay=5e-4) for _ in range(2)]
        nets: list[nn.Module] = [teacher.train(), student.train()]
        with traced(theirs, at.limit):
            settings = {"T": 20, "alpha": 0.3, "beta": torch.tensor([0.1]), "kd_loss_fn": torch.nn.functional.kl_div}
            main.mmd_hinton_train_alt(1, 400, *nets, *opts, "cpu", source, target, **settings, logger=None)
    return theirs, Ours(made, lambda _: Domains(source, target))
