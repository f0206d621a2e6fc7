"""CMI (zju-vipa): ``CMISynthesizer``, a step of generator, latents and head, with a bank that is not empty.

kornia's views are stood in for by ours, so that both sides see the same. Instead of being drawn anew, the generator
goes back to its first weights for each batch. Known differences, without effect on the losses: theirs projects the
global features with a graph and detaches them, and computes gradients of teacher and student, which nobody uses; it
draws its places in the bank in Python. A full bank of theirs returns nothing in one round, so that the one here is
larger than what is kept in it.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.methods.data_free.cmi import Cmi
from references.fast import INNER, Views, checkout, equal_labels, networks, ours
from references.observed import Trace, copied, traced
from references.sides import COLOUR, MANY, At, Ours, adam

EARLIER = 16
"""Batches of images whose features are in the bank at first: 4,096 of them at the authors' batch of 256."""
WEIGHTS = {"bn": 1.0, "oh": 0.5, "adv": 0.5, "cr": 0.8}


class Begun(Cmi):
    """With the head and the bank that theirs begins with, in their precision; goes back to its first generator."""

    def __init__(self, *, their_head: nn.Module, earlier: Tensor, **settings: Any) -> None:
        super().__init__(**settings)
        copied(their_head, self.head)
        self.bank = ImageBuffer(self.bank.capacity, dtype=earlier.dtype)
        self.bank.add(earlier)
        self.first = copy.deepcopy(self.generator.state_dict())

    def redraw_generator(self) -> None:
        """Not redrawn: the first one again."""
        self.generator.load_state_dict(self.first)


def synthesis(at: At) -> tuple[Trace, Ours]:
    """Ten steps on generator, latents and head, and the next ten on the next batch."""
    theirs, views, bank = Trace(), Views(), 4 * EARLIER * at.batch
    with tempfile.TemporaryDirectory() as pool, checkout(at, views) as free:
        nets = networks(free)
        code = importlib.import_module("datafree.synthesis.contrastive")
        code.reset_model(nets[2])
        maker = free.synthesis.CMISynthesizer(
            *nets,
            nz=256,
            num_classes=10,
            img_size=(3, 32, 32),
            iterations=INNER,
            lr_g=1e-3,
            head_dim=256,
            bank_size=bank,
            synthesis_batch_size=at.batch,
            sample_batch_size=at.batch,
            normalizer=free.utils.Normalizer(COLOUR["mean"], COLOUR["std"]),
            save_dir=pool,
            **WEIGHTS,
        )
        maker.mem_bank.add(torch.randn(EARLIER * at.batch, maker.mem_bank.dim_feat))
        made = ours(
            partial(
                Begun, their_head=copy.deepcopy(maker.head), earlier=maker.mem_bank.data[: EARLIER * at.batch].clone()
            ),
            nets,
            at,
            latent=256,
            steps=INNER,
            lr_g=1e-3,
            kd_steps=0,
            per_batch=INNER,
            bank_size=bank,
            local=[lambda x, _: views.part(x), lambda x, _: views.flip(x)],
            augment=[lambda x, _: views.crop(x), lambda x, _: views.flip(x)],
            optimizer_head=partial(adam, lr=1e-3),
            **WEIGHTS,
        )
        first = copy.deepcopy(nets[2].state_dict())
        with (
            patch.object(code, "reset_model", lambda generator: generator.load_state_dict(first)),
            patch.object(code, "DataIter"),
            equal_labels(views),
            traced(theirs, at.limit),
        ):
            for _ in range(MANY):
                maker.synthesize()
    return theirs, Ours(made, around=partial(equal_labels, views))
