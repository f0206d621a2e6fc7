"""ZSKT: zero-shot knowledge transfer via adversarial belief matching (Micaelli and Storkey, NeurIPS 2019).

The generator searches for images on which student and teacher disagree most; the student then takes ten steps
on the same images to match the teacher's predictions and, where their blocks correspond, its attention. The
generator keeps exploring, so that the student is trained on all parts of the input space.

Deviations (paper / authors' code / here):
    * D_KL: sum over classes / PyTorch's "mean", C times smaller / "mean" by default, because beta=250 is meant
      beside it; ``variant="paper"`` sums, and the same balance then needs beta=250 C.
    * Images: - / rendered again for each of the ten student steps, with backward passes through the generator
      that nobody uses / once, and so are the teacher's answers; the numbers are the same.
    * Schedules: cosine over all pseudo-batches / stepped with each / stepped once an epoch.
    * Student and generator stay in training mode throughout, as in the code.
    * Result: the last step / the last step / the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from kd_lightning.core.feature_hooks import capture
from kd_lightning.losses.adversarial import attention, attention_distance
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.generator_pair import GeneratorPair


class Zskt(GeneratorPair):
    """One round: one pseudo-batch z, a generator step on it, then ``student_steps`` student steps on it.

    Args:
        student_steps: n_S; n_G is 1.
        beta: weight of attention transfer (beta).
        blocks: module paths whose maps (N, C, H, W) are compared, the same in both networks, which must have
            equal sizes there; ``[net.block1, net.block2, net.block3]`` for wide ResNets. None omits attention transfer.
        clip: largest norm of either network's gradient.
        variant: ``code`` or ``paper``, see the deviations above.
        **generative: see :class:`GeneratorPair`.
    """

    clips_gradients = True

    def __init__(
        self,
        *,
        student_steps: int = 10,
        beta: float = 250.0,
        blocks: Sequence[str] = (),
        clip: float = 5.0,
        variant: Literal["paper", "code"] = "code",
        **generative: Any,
    ) -> None:
        super().__init__(**generative)
        self.student_steps = student_steps
        self.beta, self.blocks, self.clip = beta, tuple(blocks), clip
        self.reduction: Literal["batchmean", "mean"] = "mean" if variant == "code" else "batchmean"

    def student_updates_per_round(self) -> int:
        """``student_steps``, n_S."""
        return self.student_steps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One pseudo-batch."""
        opt_s, opt_g = self.opts()
        z = self.latents(self.batch_size)

        # Generator: maximise D_KL(T || S); gradients pass through both networks and change neither
        with frozen(self.student):
            x = self.generator(z)
            disagreement = kl(self.student(x), self.white(x), reduction=self.reduction)
            self.update(opt_g, -disagreement)

        # The same z through the updated generator, and the teacher's logits and attention
        with torch.no_grad(), capture(self.white.net, outputs=self.blocks) as maps_t:
            x = self.to_study(z)
            t = self.white(x)
            looked_t = [attention(maps_t[block]) for block in self.blocks]

        # Student: D_KL(T || S) + beta * sum over blocks of the attention's distance
        for _ in range(self.student_steps):
            with capture(self.student, outputs=self.blocks) as maps_s:
                losses = {"kl": kl(self.student(x), t, reduction=self.reduction)}
            if self.blocks:
                looked = [attention(maps_s[block]) for block in self.blocks]
                losses["at"] = self.beta * attention_distance(looked, looked_t)
            self.update(opt_s, torch.stack(list(losses.values())).sum())

        self.record(**losses, disagreement=disagreement)
        self.show(x, t)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of the network that is about to step."""
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
