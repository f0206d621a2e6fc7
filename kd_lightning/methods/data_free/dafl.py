"""DAFL: data-free learning of student networks (Chen et al., ICCV 2019, arXiv 1904.01186).

A generator replaces the training data. The teacher judges its images: they should look like one
class (one-hot), excite the features (activation) and cover all classes evenly (information entropy).
In the same step the student imitates the teacher on the same images.

Deviations (paper / authors' code / here):
    * entropy: natural logarithm / base 10 / natural by default, ``variant="code"`` for base 10. The code's
      weight 5 is 2.17 in nats; our presets state their weights in the unit of their variant.
    * activation: sum over features / mean over features / mean.
    * Images: the generator's standardised output is fed to the teacher as it is / likewise / it leaves
      the generator in data units and the teacher's own normalisation undoes that, which is the same.
    * Result: not stated / best test accuracy over all epochs / the last step.
    * ``ms`` is no part of DAFL: it adds the mode-seeking term of MSGAN (Mao et al., CVPR 2019), see
      conf/method/mskd.yaml.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.core.feature_hooks import capture
from kd_lightning.losses.diversity import mode_seeking
from kd_lightning.losses.image_prior import activation, information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.generator_pair import GeneratorPair
from kd_lightning.networks import head_of


class Dafl(GeneratorPair):
    """One round: one joint step of generator and student on the same images.

    Args:
        oh: weight of the one-hot loss (L_oh).
        act: weight of the activation loss (alpha L_a).
        ie: weight of the information entropy loss (beta L_ie).
        ms: weight of the mode-seeking loss (lambda_ms of MSGAN); 0 is DAFL.
        variant: ``paper`` or ``code``, see the deviations above.
        **generative: see :class:`GeneratorPair`.
    """

    def __init__(
        self,
        *,
        oh: float = 1.0,
        act: float = 0.1,
        ie: float = 5.0,
        ms: float = 0.0,
        variant: Literal["paper", "code"] = "paper",
        **generative: Any,
    ) -> None:
        super().__init__(**generative)
        self.oh, self.act, self.ie, self.ms = oh, act, ie, ms
        self.entropy_log: Literal["e", "10"] = "e" if variant == "paper" else "10"

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Generate images, and take one step of each network on them."""
        opt_s, opt_g = self.opts()
        z = self.latents(self.batch_size)
        x = self.generator(z)
        features, t = self.judge(x)

        # Generator: L_oh + alpha L_a + beta L_ie
        losses = {
            "oh": self.oh * one_hot(t),
            "ie": self.ie * information_entropy(self.gathered(t), log=self.entropy_log),
            "act": self.act * activation(features),
        }
        if self.ms:
            losses["ms"] = self.ms * self.mode_seeking(self.gathered(x), self.gathered(z))
        self.update(opt_g, torch.stack(list(losses.values())).sum())

        # Student, L_KD: imitate on the same images, detached from the generator, but for those of its average
        x_s, t_s = x.detach(), t.detach()
        if self.averaged is not None and len(old := self.of_average(z)):
            with torch.no_grad():
                x_old = self.averaged(old)
                x_s = torch.cat([x_s[: -len(old)], x_old])
                t_s = torch.cat([t_s[: -len(old)], self.white(x_old)])
        loss_kd = kl(self.student(x_s), t_s)
        self.update(opt_s, loss_kd)

        self.record(kd=loss_kd, **losses)
        self.show(x, t)

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's penultimate features (N, D) and logits (N, K), in one forward pass with gradients."""
        with capture(self.white.net, inputs=(self.head,)) as taps:
            t = self.white(x)
        return taps[self.head], t

    @cached_property
    def head(self) -> str:
        """Path of the teacher's last layer, whose input is its features."""
        return head_of(self.white.net)

    def mode_seeking(self, x: Tensor, z: Tensor) -> Tensor:
        """MSGAN's loss, in the space of its tanh images: standardised, not [0, 1]."""
        return mode_seeking(self.white.standardise(x), z)
