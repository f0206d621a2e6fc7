"""ZSKD: zero-shot knowledge distillation in deep networks (Nayak et al., ICML 2019, arXiv 1905.08114).

The rows of the teacher's last layer determine the similarity of classes. Soft targets are drawn from Dirichlet
distributions with concentrations from these similarities, and pixels are optimised until the teacher's softened answer
is the target: a pool of "data impressions". The student learns the softened answers (``Distill``, KL at T=20).

Deviations (paper / authors' code / here):
    * concentrations: beta times the class similarities scaled to [0, 1] / scaled to [0, 1] once more afterwards, so
      that beta=0.1 gives what beta=1 does / the paper; ``variant="code"`` for the other.
    * Pixels: - / the whole batch is rescaled to [0, 1] before every step, which leaves grey strokes on grey / the
      code; ``keep="clamp"`` clips every pixel to [0, 1] instead, which leaves strokes of full contrast.
    * Batches: - / continue from the last impressions of the class and Adam's state / start from fresh noise.
    * Images: - / float / rounded to 8 bits.
    * Teacher's answers: - / its softmax before the last step, at 20 / its logits on the rounded image.
    * Augmentation: - / flips, shifts, rotations ... / the data set's own; the target stays the answer to the original
      image, unless ``fresh_answers`` has the teacher answer the augmented one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.losses.soft_labels import soft_cross_entropy
from kd_lightning.networks import head_of
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool import made_by, noise_on, obtain_pool, teacher_of


class DataImpressions:
    """A pool of impressions, served with the teacher's answers.

    Args:
        images: total number, divided evenly among the pairs of class and beta.
        batch_size: images per batch and rank, for the student.
        impressions: number optimised together, of one class and beta.
        steps: of Adam for each batch of impressions.
        lr: its learning rate, on pixels in [0, 1].
        temperature: tau of the teacher's softmax.
        betas: scalings of the concentrations.
        variant: ``paper`` or ``code``, see the deviations above.
        keep: how pixels stay in [0, 1]: ``stretch`` or ``clamp``, see the deviations above.
        fresh_answers: whether the teacher answers every augmented batch again.
        augment: applied to each batch.
        seed: of targets and noise.
    """

    offers = frozenset({"source.images", "source.index", "source.answers", "source.synthetic"})
    version = 1
    """Raised whenever its images would change."""
    needs = frozenset({"teacher.gradients", "task.classification"})

    def __init__(
        self,
        *,
        images: int,
        batch_size: int,
        impressions: int = 100,
        steps: int = 1500,
        lr: float = 1e-3,
        temperature: float = 20.0,
        betas: Sequence[float] = (1.0, 0.1),
        variant: Literal["paper", "code"] = "paper",
        keep: Literal["stretch", "clamp"] = "stretch",
        fresh_answers: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.images, self.batch_size, self.impressions = images, batch_size, impressions
        self.steps, self.lr, self.temperature = steps, lr, temperature
        self.betas, self.variant = tuple(betas), variant
        self.keep, self.fresh_answers = keep, fresh_answers
        self.augment, self.seed = augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """The impressions, optimised now or read from the store.

        Raises:
            ConfigError: the teacher is missing or not white-box.
        """
        net = teacher_of(context, "data_impressions")
        similarity = class_similarity(last_weights(net)).cpu()
        alphas = [concentrations(row, beta, variant=self.variant) for beta in self.betas for row in similarity]
        shape = context.dataset.image_shape

        def make(number: int, random: np.random.Generator) -> dict[str, Tensor]:
            rows = range(number * self.impressions, min((number + 1) * self.impressions, self.images))
            drawn = np.stack([random.dirichlet(alphas[r * len(alphas) // self.images].double()) for r in rows])
            targets = torch.from_numpy(drawn).float().to(context.device)
            noise = noise_on(context, random)
            x = torch.rand((len(targets), *shape), device=context.device, generator=noise)
            x = self.impress(net, x, targets).mul(255).round() / 255
            with torch.no_grad():
                return {"images": x, "answers": net(x).float()}

        config = {k: v for k, v in vars(self).items() if k not in ("augment", "batch_size", "fresh_answers")}
        config |= {"source": "data_impressions", "shape": shape, "version": self.version, **made_by(self)}
        pool = obtain_pool(context, config, math.ceil(self.images / self.impressions), make)
        answers = None if self.fresh_answers else pool["answers"]
        return context.serve(pool["images"], answers=answers, batch_size=self.batch_size, augment=self.augment)

    def impress(self, net: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        """Optimise pixels x (N, C, H, W) to minimise CE(y, softmax(T(x) / tau)), kept in [0, 1] at every step."""
        x = x.requires_grad_()
        adam = torch.optim.Adam([x], lr=self.lr)
        keep = _stretch if self.keep == "stretch" else _clamp
        for _ in range(self.steps):
            keep(x)
            loss = soft_cross_entropy(net(x), targets, temperature=self.temperature)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return keep(x).detach()


@torch.no_grad()
def _stretch(x: Tensor) -> Tensor:
    """Rescale the whole batch to [0, 1], in place."""
    low, high = x.aminmax()
    return x.sub_(low).div_(high - low)


@torch.no_grad()
def _clamp(x: Tensor) -> Tensor:
    """Clip every pixel to [0, 1], in place."""
    return x.clamp_(0, 1)


def last_weights(net: Normalized) -> Tensor:
    """The weights (C, d) of the last linear layer, rows in the order of the data's classes."""
    head = net.get_submodule(head_of(net))
    weights = [module.weight for module in head.modules() if isinstance(module, nn.Linear)][-1].detach()
    return weights if net.class_order is None else weights[net.class_order]


def class_similarity(weights: Tensor) -> Tensor:
    """Cosine similarities (C, C) between the rows of ``weights`` (C, d), each row scaled to [0, 1]."""
    unit = F.normalize(weights.float(), dim=1)
    return _unit_range(unit @ unit.T)


def concentrations(
    similarity: Tensor, beta: float, *, variant: Literal["paper", "code"] = "paper", floor: float = 1e-4
) -> Tensor:
    """Dirichlet concentrations alpha (..., C) for rows of class similarities in [0, 1], at least ``floor``."""
    scaled = beta * similarity
    return (scaled if variant == "paper" else _unit_range(scaled)) + floor


def _unit_range(rows: Tensor) -> Tensor:
    low, high = rows.aminmax(dim=-1, keepdim=True)
    return (rows - low) / (high - low)
