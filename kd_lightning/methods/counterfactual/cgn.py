"""Counterfactual generative networks for digits (Sauer and Geiger, ICLR 2021, arXiv 2101.06046).

Three mechanisms draw an image's shape, texture and background, which are composed as x = m f + (1 - m) b. They are
trained against one discriminator on images in which the three are correlated, and separate because of what each can
draw: a loss makes masks binary, and a texture is shifted at random before it is composed, so that it cannot hold a
shape. Given a label each, they then draw counterfactual images, in which the three are independent.

Deviations (paper / authors' code / here):
    * Perceptual loss: between an image and the one it stands for / between Gram matrices of images of different
      classes, as those it is compared with are any of the batch / the same, and without ``features`` none.
    * Pixels: - / [-1, 1] / [0, 1]; the discriminator and ``features`` turn them back.
    * Discriminator: linear or convolutional, the label beside the image / the same / the same, and at small scale a
      projection of the label with spectral norms, with which masks take shape within hundreds of steps.
    * ``colour``: - / - / a level of the perceptual loss that is the pixels themselves, between images of one class, in
      small scale: without it, object and background of a class change places, or a texture paints the shape, before
      there are shapes. None by default.
    * ``edge``, ``still``: - / - / masks that reach the rim cost something, and the object's texture stands still at
      first, at small scale of wildlife digits, where object and background of a class change places; neither by
      default.
    * Backgrounds: begin grey / the same / the same, and at small scale of single-colored digits black (the generator's
      ``behind``), or some classes stand white before black.
    * ``fade``: - / - / masks fade in, at small scale, so that backgrounds take their colours first; at once by default.
    * ``ema``: - / - / the average of the generator's weights is kept, if wanted.
    * ``ms``: - / - / a mode-seeking term on masks (Mao et al., CVPR 2019), at small scale, where the discriminator lets
      a class be one shape; none by default.
    * ``mask_operations``: operators between the mechanisms and their composition, as SKDCGN's study has them; none by
      default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.notices import notice
from kd_lightning.data.batches import Batch
from kd_lightning.distributed import collectives
from kd_lightning.losses.counterfactual import MECHANISMS, binary_entropy, compose, edge, style
from kd_lightning.losses.diversity import mode_seeking
from kd_lightning.losses.gan import least_squares_d, least_squares_g
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.counterfactual.class_loss_monitor import ClassLossMonitor
from kd_lightning.methods.counterfactual.mask_monitor import MaskMonitor
from kd_lightning.networks.generators.cgn import shifted
from kd_lightning.sources.mask_operations import Operator, applied
from kd_lightning.teachers.white_box import FrozenTeacher


class Cgn(ConditionalGan):
    """One round: a step of the mechanisms, then one of the discriminator on the same images.

    Args:
        binary: weight of the mask's entropy in bits (lambda_3 of the paper's losses).
        features: images in [0, 1] to a list of feature maps, for the perceptual loss; None for none.
        perc: weights of its levels.
        colour: weight of a level before those, of the pixels with a map of ones, whose Gram matrix holds the means
            and second moments of an image's colours. Images are then drawn of the batch's labels, and each is
            compared with the real one of its label; 0 is CGN.
        edge: weight of the mask's values at the border, an eighth of the side; 0 is CGN.
        fade: rounds over which masks are scaled up from 0 to 1; 0 is CGN.
        still: rounds in which the object's texture is not trained; 0 is CGN.
        mask_operations: operators on mask, texture and background before they are composed.
        ms: weight of mode seeking among the masks of a label (MSGAN's lambda_ms); 0 is CGN.
        ms_from: first round of mode seeking.
        **gan: see :class:`ConditionalGan`; ``generator`` draws the three mechanisms.
    """

    generator_lr = "cgn.method.optimizer_g.lr (method.optimizer_g.lr with method=cgn)"

    def __init__(
        self,
        *,
        binary: float = 0.3,
        features: nn.Module | None = None,
        perc: Sequence[float] = (),
        colour: float = 0.0,
        edge: float = 0.0,
        fade: int = 0,
        still: int = 0,
        mask_operations: Sequence[Operator] = (),
        ms: float = 0.0,
        ms_from: int = 0,
        **gan: Any,
    ) -> None:
        super().__init__(**gan)
        self.binary, self.perc, self.colour = binary, tuple(perc), colour
        self.mask_operations = tuple(mask_operations)
        self.edge, self.fade, self.still, self.ms, self.ms_from = edge, fade, still, ms, ms_from
        self.watch, self.verdicts = MaskMonitor(self.task.num_classes), ClassLossMonitor(self.task.num_classes)
        self.features = None if features is None else FrozenTeacher(features)
        if features is None and any(perc):
            notice(
                "features.weights=null: CGN's perceptual loss, which needs VGG-16's, is off. Give torchvision's "
                "vgg16-397923af.pth with method.features.weights (cgn.method.features.weights in a chain), or say that "
                "none is wanted with method.perc=[]",
                stacklevel=1,
            )

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images with their classes."""
        return {"source.images", "source.labels", "task.classification"}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch of labelled images."""
        assert batch.y is not None
        opt_d, opt_g = self.opts()
        x, y = batch.x, batch.y
        made_y = self.wanted(y)
        z = self.noise(len(made_y), self.latent)
        mask, made = self.composite(z, made_y)

        # Mechanisms: L_adv + lambda L_binary + L_perc (+ L_colour + L_edge + lambda_ms L_ms)
        with frozen(self.discriminator):
            losses = {"g": least_squares_g(self.discriminator(made, made_y))}
            losses["binary"] = self.binary * binary_entropy(mask)
            if self.features is not None:
                with torch.no_grad():
                    seen = self.features.net(x)
                losses["perc"] = style(self.features.net(made), seen, self.perc)
            if self.colour:
                losses["colour"] = style([colours(made)], [colours(self.alike(x))], [self.colour])
            if self.edge:
                losses["edge"] = self.edge * edge(mask, width=mask.shape[-1] // 8)
            if self.seeks():
                losses["ms"] = self.ms * mode_seeking(mask, z)
            self.update(opt_g, torch.stack(list(losses.values())).sum())

        # Discriminator
        on_real, on_made = self.discriminator(x, y), self.discriminator(made.detach(), made_y)
        loss_d = least_squares_d(on_real, on_made)
        self.update(opt_d, loss_d)

        self.watch.add(mask, made_y)
        self.verdicts.add(on_real, y, on_made, made_y)
        self.keep()
        self.record(d=loss_d, **losses, on_real=on_real.mean(), on_made=on_made.mean(), mask=mask.mean())

    def on_train_epoch_end(self) -> None:
        """Check for masks of all zeros or ones and, in the last epoch, for classes that were not learned."""
        super().on_train_epoch_end()
        self.watch.tell(self.rounds_done, self.on_collapse)
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.verdicts.tell()
        else:
            self.verdicts.look()

    def seeks(self) -> bool:
        """Whether this round has the mode-seeking term."""
        return self.ms > 0 and self.rounds_done >= self.ms_from

    def wanted(self, y: Tensor) -> Tensor:
        """Labels (N,) to draw images of: random, or those of the batch; with mode seeking the first half twice."""
        if self.colour:
            return self.alike(y)
        return self.alike(torch.randint(self.task.num_classes, y.shape, generator=self.rng, device=self.device))

    def alike(self, real: Tensor) -> Tensor:
        """Rows of a batch in the order of :meth:`wanted`: with mode seeking the first half twice, else unchanged."""
        half = real[: -(-len(real) // 2)]
        return torch.cat([half, half]) if self.seeks() else real

    def composite(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (N, 1, H, W) and images (N, C, H, W) of latents (N, latent) and labels (N,), shared by mechanisms."""
        self.images_made += len(y) * collectives.world()
        mask, fg, bg = (cast(Any, self.learner).draw(im, z, y) for im in MECHANISMS)
        fg = fg.detach() if self.still and self.rounds_done < self.still else fg
        come = min(1, (self.rounds_done + 1) / self.fade) if self.fade > 0 else 1
        parts = applied(self.mask_operations, come * mask, shifted(fg, self.rng), shifted(bg, self.rng), self.rng)
        return mask, compose(*parts)


def colours(x: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1] scaled to [-1, 1], with a map of ones: (N, C + 1, H, W)."""
    return torch.cat([torch.ones_like(x[:, :1]), 2 * x - 1], 1)
