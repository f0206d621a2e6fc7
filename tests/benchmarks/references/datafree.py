"""DataFree (zju-vipa): the synthesizer of its DFQ."""

from __future__ import annotations

import importlib
from functools import partial

import torch

from kd_lightning.methods.data_free.dfq import Dfq
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.generators.generators import ConvGenerator
from references.observed import Trace, copied, importable, settled, traced
from references.sides import COLOUR, MANY, At, Ours, adam, method, sgd


def dfq(at: At) -> tuple[Trace, Ours]:
    """WRN-16-2 to WRN-16-1: one step of the generator, ten of the student, which are put together here."""
    theirs = Trace()
    with importable(at.folder, "termcolor", "kornia", "torchvision.models.utils"), traced(theirs, at.limit):
        free = importlib.import_module("datafree")
        models = importlib.import_module("datafree.models.classifiers.wresnet")
        teacher, student = settled(models.WideResNet(16, 10, 2)), models.WideResNet(16, 10, 1)
        generator = importlib.import_module("datafree.models.generator").Generator(nz=100, ngf=64, img_size=32, nc=3)
        made = method(
            Dfq,
            copied(teacher, WideResNet(depth=16, widen=2, num_classes=10)),
            copied(student, WideResNet(depth=16, widen=1, num_classes=10)),
            COLOUR,
            generator=copied(generator, sigmoid(100)),
            batch_size=at.batch,
            optimizer=partial(sgd, lr=0.1, weight_decay=1e-4),
            optimizer_g=partial(adam, lr=1e-3, betas=(0.5, 0.999)),
        )
        sizes = {"nz": 100, "img_size": (3, 32, 32), "synthesis_batch_size": at.batch, "sample_batch_size": at.batch}
        weights = {"adv": 1, "bn": 1, "oh": 1, "balance": 20}
        normalizer = free.utils.Normalizer(COLOUR["mean"], COLOUR["std"])
        maker = free.synthesis.GenerativeSynthesizer(
            teacher, student, generator, normalizer=normalizer, **weights, **sizes
        )
        criterion = free.criterions.KLDiv()
        opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(MANY):
            maker.synthesize()
            student.train()
            for _ in range(10):
                x = maker.sample()
                with torch.no_grad():
                    t = teacher(x)
                opt.zero_grad()
                criterion(student(x), t).backward()
                opt.step()
    return theirs, Ours(made)


def sigmoid(latent: int) -> ConvGenerator:
    """Our generator of DataFree's and Fast-Datafree's shape."""
    return ConvGenerator(latent=latent, channels=3, size=32, tail="sigmoid", eps=1e-5, conv_bias=False)
