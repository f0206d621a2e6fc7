"""DFAD (VainF): ``train`` of ``DFAD_mnist.py`` and of ``DFAD_camvid_deeplab.py``."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace

import torch

from kd_lightning.methods.data_free.dfad import Dfad
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.generators.dcgan import GeneratorB
from kd_lightning.networks.generators.generators import ConvGenerator
from kd_lightning.networks.segmenters.deeplab import DeepLab
from references.observed import Trace, copied, importable, traced
from references.sides import GREY, MANY, At, Ours, adam, method, sgd

HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3}


def dfad(at: At) -> tuple[Trace, Ours]:
    """LeNet-5 to its half: five steps of the student, one of the generator."""
    theirs = Trace()
    with importable(at.folder, "dataloader", "torchvision.models.utils"):
        main = importlib.import_module("DFAD_mnist")
        his = main.network.lenet.LeNet5(), main.network.lenet.LeNet5Half()
        generator = main.network.gan.GeneratorA(nz=100, ngf=64, nc=1, img_size=32)
        made = method(
            Dfad,
            copied(his[0], LeNet5()),
            copied(his[1], LeNet5(widths=(3, 8, 60, 42))),
            GREY,
            generator=copied(generator, ConvGenerator(latent=100, channels=1, size=32, eps=1e-5, **GREY)),
            batch_size=at.batch,
            optimizer=partial(sgd, lr=0.01, weight_decay=1e-4),
            optimizer_g=partial(adam, lr=1e-3),
        )
        opts = (
            torch.optim.SGD(his[1].parameters(), lr=0.01, weight_decay=1e-4, momentum=0.9),
            torch.optim.Adam(generator.parameters(), lr=1e-3),
        )
        args = SimpleNamespace(epoch_itrs=MANY, batch_size=at.batch, nz=100, verbose=False)
        with traced(theirs, at.limit):
            main.train(args, *his, generator, "cpu", opts, 0)
    return theirs, Ours(made)


def dense(at: At) -> tuple[Trace, Ours]:
    """DeepLabv3 on ResNet-50 to its student, scenes of 128x128; without dropout where losses are compared.

    The student's batch norms then begin with random biases: with biases of 0 a padded pixel, whose batch mean is 0 too,
    lies on the kink of ReLU6 in up to half of a map, and rounding chooses its gradient on either side.
    """
    theirs = Trace()
    settings = {"num_classes": 11, "rates": (12, 24, 32)}
    dropout = 0.0 if at.checking else 0.5
    with importable(at.folder, "dataloader", "torchvision.models.utils", "utils.visualizer"):
        main = importlib.import_module("DFAD_camvid_deeplab")
        made_by = main.network.segmentation.deeplabv3
        teacher = made_by.deeplabv3_resnet50(num_classes=11, pretrained_backbone=False)
        student = made_by.deeplabv3_mobilenet(num_classes=11, dropout_p=dropout, pretrained_backbone=False)
        if at.checking:
            for module in student.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.bias, std=0.1)
        generator = main.network.gan.GeneratorB(nz=256, img_size=128)
        made = method(
            Dfad,
            copied(teacher, DeepLab(**settings, dropout=0.0)),
            copied(student, DeepLab(**settings, backbone="mobilenet_v2", dropout=dropout)),
            HALVES,
            generator=copied(generator, GeneratorB()),
            latent=256,
            batch_size=at.batch,
            log_distance=True,
            optimizer=partial(sgd, lr=0.1, weight_decay=5e-4),
            optimizer_g=partial(adam, lr=1e-3),
        )
        opts = (
            torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=5e-4, momentum=0.9),
            torch.optim.Adam(generator.parameters(), lr=1e-3),
        )
        args = SimpleNamespace(epoch_itrs=MANY, batch_size=at.batch, nz=256, log_interval=MANY)
        with traced(theirs, at.limit):
            main.train(args, teacher, student, generator, "cpu", opts, 0)
    return theirs, Ours(made)
