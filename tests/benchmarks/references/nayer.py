"""NAYER (tmtuan1307): the class ``NAYER``, a step of its generator with noisy layers.

Its script does not start as released, so that the class is called as the script would call it. Both sides have our
orthonormal embeddings, where theirs reads those of CLIP from a pickle, and our views, where theirs has kornia's.
Neither redraws the generator. A batch is filled up to whole runs of the classes, where theirs would take random
classes. Theirs computes gradients of teacher and student, too, which nobody uses, and has a module for each noisy
layer. An epoch has one batch: theirs would put the student into training mode for further ones.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from torch import nn

from kd_lightning.methods.data_free.nayer import Nayer, orthonormal
from references.fast import INNER, Views, checkout, equal_labels, networks, ours
from references.observed import Trace, traced
from references.sides import COLOUR, MANY, At, Ours

OURS = "kd_lightning.methods.data_free.nayer"
HIDDEN, CLASSES, EMBEDDED = 1000, 10, 512
WEIGHTS = {"bn": 10.0, "oh": 0.5, "adv": 1.33}


@contextlib.contextmanager
def kept(views: Views) -> Iterator[None]:
    """The same labels and views, and a generator that keeps its weights."""
    with equal_labels(views), patch(f"{OURS}.redraw"):
        yield


def synthesis(at: At) -> tuple[Trace, Ours]:
    """Ten steps on generator and noisy layers, and the next ten with the next noisy layers."""
    theirs, views = Trace(), Views()
    at = replace(at, batch=-(-at.batch // CLASSES) * CLASSES)
    with tempfile.TemporaryDirectory() as pool, checkout(at, views, "xlsxwriter") as free:
        teacher, student, _ = networks(free)
        generators = importlib.import_module("datafree.models.generator")
        embedding = orthonormal(CLASSES, EMBEDDED)
        generator = generators.NLGenerator(
            nl=CLASSES, label_emb=embedding, le_emb_size=HIDDEN, le_size=EMBEDDED, sbz=at.batch
        )
        maker = free.synthesis.NAYER(
            teacher,
            student,
            generator,
            CLASSES,
            (3, 32, 32),
            g_steps=INNER,
            lr_g=4e-3,
            synthesis_batch_size=at.batch,
            sample_batch_size=at.batch,
            save_dir=pool,
            normalizer=free.utils.Normalizer(COLOUR["mean"], COLOUR["std"]),
            warmup=0,
            bn_mmt=0.9,
            g_life=MANY,
            **WEIGHTS,
        )
        made = ours(
            Nayer,
            (teacher, student, nn.ModuleList([generator.l1, generator.conv_blocks])),
            at,
            inputs=HIDDEN,
            lr_g=4e-3,
            dim=EMBEDDED,
            hidden=HIDDEN,
            g_steps=INNER,
            g_loops=1,
            warmup=0,
            kd_steps=0,
            per_batch=1,
            augment=[lambda x, _: views.crop(x), lambda x, _: views.flip(x)],
            **WEIGHTS,
        )
        redrawn = generator.re_init_le

        def note() -> None:
            redrawn()
            theirs.drawn.append(torch.stack([layer.weight.detach().T for layer in generator.le1]))

        generator.re_init_le, generator.reinit = note, lambda: generator
        with patch("datafree.synthesis.nayer.DataIter"), equal_labels(views), traced(theirs, at.limit):
            for _ in range(MANY):
                maker.synthesize()
    return theirs, Ours(made, around=partial(kept, views))
