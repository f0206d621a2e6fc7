"""Counterfactual generative networks for ImageNet (Sauer and Geiger, ICLR 2021, arXiv 2101.06046).

Three mechanisms start as copies of a trained BigGAN-deep and learn to reproduce, composed as x = m f + (1 - m) b, what
it draws of the same latents and class. No real image and no discriminator is used. Three losses separate the
mechanisms: masks are to be binary and neither empty nor full, the object's texture is to look like patches from inside
the object, and a saliency network is to find nothing on the background.

Deviations (paper / authors' code / here). ``variant`` chooses what is drawn, settings hold the rest.
    * Latents: Gaussian / Gaussian cut off at two deviations, times ``truncation`` / by ``variant``.
    * Classes: uniform / one for all images of a forward, as it has but one / by ``variant``.
    * Weight of the perceptual loss: 5 / 4 for each level, squared and times 5000 / the code's. It compares Gram
      matrices alone, of VGG-16 without normalisation. Without a file of VGG-16's both Gram losses are off.
    * Learning rate of textures: 1e-5 / 3e-5 / the code's.
    * Updates: - / 300, each of the summed gradients of 4000 forwards / likewise; the last round of a fit steps with
      what there is.
    * Optimisers: - / an Adam for each mechanism / one with three groups, which is the same.
    * Losses on pixels: - / of [-1, 1] / the same; images are in [0, 1] beyond this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.core.notices import notice
from kd_lightning.distributed import collectives
from kd_lightning.losses.counterfactual import (
    MECHANISMS,
    binary_entropy,
    compose,
    mask_size,
    patch_grid,
    saliency,
    style,
)
from kd_lightning.methods.base.distiller import Distiller, LastBatch, OptimizerFactory
from kd_lightning.networks.generators.cgn_imagenet import ImageNetCgn, truncated_normal
from kd_lightning.networks.generators.gan_blocks import from_pixels
from kd_lightning.networks.pretrained import load_biggan_deep, load_u2net
from kd_lightning.teachers.white_box import FrozenTeacher


class CgnImageNet(Distiller):
    """One round: one forward of ``batch_size`` images, whose gradients are added up; a step every ``accumulate``.

    Args:
        generator: the mechanisms.
        pseudo: latents (N, latent) and classes (N,) to the images to reproduce, (N, 3, H, W) in [0, 1]; it is frozen
            and left out of checkpoints.
        optimizer: makes the optimiser from three groups of parameters.
        biggan: BigGAN-deep's published weights to start ``pseudo`` and the mechanisms from; None keeps those they have.
        saliency: U2-Net's published weights; None keeps those it has.
        features: images in [0, 1] to a list of feature maps; None for no Gram losses.
        variant: ``paper`` or ``code``, see the deviations above.
        lr_shape: learning rate of the shape's mechanism.
        lr_text: of the texture's.
        lr_bg: of the background's.
        latent: length of z.
        truncation: of z, where ``variant`` cuts it off.
        batch_size: images of a forward, per rank.
        accumulate: forward passes for one step.
        l1: lambda_1, of the mean absolute difference.
        perc: w of each level of the perceptual loss (lambda_2).
        binary: lambda_3, of the mask's entropy in bits.
        share: lambda_4, of how far a mask's share of the image lies outside [tau, 1 - tau].
        tau: the smallest share that costs nothing.
        text: w of each level of the texture's loss (lambda_5).
        bg: lambda_6, of the background's saliency.
        patch: side of the texture's patches.
        resize: side of the image they are cut from.
        best: number of patches with the highest mean mask, from which those of the grid are drawn.
        grid: patches per row and column.
        shown: images shown to callbacks at a time.
        show_every: steps between two such batches.
        **base: see :class:`Distiller`.

    Raises:
        TeacherError: a file cannot be read, or holds another network.
    """

    trains_student = False

    def __init__(
        self,
        *,
        generator: ImageNetCgn,
        pseudo: nn.Module,
        optimizer: OptimizerFactory,
        biggan: str | None = None,
        saliency: str | None = None,
        features: nn.Module | None = None,
        variant: Literal["paper", "code"] = "code",
        lr_shape: float = 8e-6,
        lr_text: float = 3e-5,
        lr_bg: float = 1e-5,
        latent: int = 128,
        truncation: float = 1.0,
        batch_size: int = 1,
        accumulate: int = 4000,
        l1: float = 100.0,
        perc: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        binary: float = 300.0,
        share: float = 500.0,
        tau: float = 0.1,
        text: Sequence[float] = (0.0, 5.0, 5.0, 0.0),
        bg: float = 2000.0,
        patch: int = 15,
        resize: int = 128,
        best: int = 100,
        grid: int = 6,
        shown: int = 64,
        show_every: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if variant not in ("paper", "code"):
            raise ValueError(f"method.variant={variant}: expected paper or code")
        if biggan is not None:
            for net in (pseudo, generator.f_shape, generator.f_text, generator.f_bg):
                load_biggan_deep(net, biggan)
        if saliency is not None:
            load_u2net(generator.u2net, saliency)
        for missing, what in (
            (biggan, "biggan=null: what is imitated, and the mechanisms, keep the weights they have"),
            (saliency, "saliency=null: the saliency net keeps the weights it has"),
            (features, "features.weights=null: the perceptual and the texture loss, which need VGG-16's, are off"),
        ):
            if missing is None:
                notice(f"method.{what}. Give the file, see conf/method/cgn_imagenet.yaml", stacklevel=1)
        self.generator, self.pseudo = generator, FrozenTeacher(pseudo)
        self.features = None if features is None else FrozenTeacher(features)
        self.make_optimizer, self.variant = optimizer, variant
        self.lrs = (lr_shape, lr_text, lr_bg)
        self.latent, self.truncation = latent, truncation
        self.batch_size, self.accumulate = batch_size, accumulate
        self.l1, self.perc, self.binary, self.share, self.tau = l1, tuple(perc), binary, share, tau
        self.text, self.bg = tuple(text), bg
        if features is None:
            self.perc = self.text = ()
        self.patches = {"patch": patch, "resize": resize, "best": best, "grid": grid}
        self.shown, self.show_every = shown, show_every

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """No data; classes."""
        return {"source.free", "task.classification"}

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """One optimiser with a group of parameters for each mechanism."""
        nets = (self.generator.f_shape, self.generator.f_text, self.generator.f_bg)
        groups = [{"params": list(net.parameters()), "lr": lr} for net, lr in zip(nets, self.lrs, strict=True)]
        return self.scheduled((self.make_optimizer(groups), None))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One forward and backward pass; a step every ``accumulate`` rounds and in the last."""
        z, y = self.latents(self.batch_size), self.classes(self.batch_size)
        self.images_made += len(y) * collectives.world()
        with torch.no_grad():
            wanted = self.generator.ask(self.pseudo.net, z, y)
        mask, fg, bg = (self.generator.draw(im, z, y) for im in MECHANISMS)
        made = compose(mask, fg, bg)

        # L_rec + L_shape + L_text + L_bg
        losses = {
            "l1": self.l1 * (from_pixels(made) - from_pixels(wanted)).abs().mean(),
            "binary": self.binary * binary_entropy(mask),
            "share": self.share * mask_size(mask, tau=self.tau),
            "bg": self.bg * saliency(self.generator.u2net(bg)),
        }
        if any(self.perc):
            losses["perc"] = self.unlike(made, wanted, self.perc)
        if any(self.text):
            losses["text"] = self.unlike(fg, patch_grid(wanted, mask, rng=self.rng, **self.patches), self.text)
        self.manual_backward(torch.stack(list(losses.values())).sum())

        self.record(**losses, mask=mask.mean())
        steps, over = divmod(self.rounds_done + 1, self.accumulate)
        last = self.rounds_done + 1 == self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        if over == 0 or last:
            opt = self.opts()[0]
            opt.step()
            opt.zero_grad()
            if steps % self.show_every == 0 or last:
                self.look()

    def unlike(self, made: Tensor, wanted: Tensor, weights: Sequence[float]) -> Tensor:
        """Weighted distance of the Gram matrices of images (N, 3, H, W); ``wanted`` gets no gradient."""
        assert self.features is not None
        with torch.no_grad():
            seen = self.features.net(wanted)
        return style(self.features.net(made), seen, weights)

    def latents(self, n: int) -> Tensor:
        """Latents (n, latent)."""
        if self.variant == "paper":
            return self.noise(n, self.latent)
        return truncated_normal(n, self.latent, rng=self.rng, truncation=self.truncation)

    def classes(self, n: int) -> Tensor:
        """Classes (n,), drawn uniformly: for each image, or one for all."""
        drawn = n if self.variant == "paper" else 1
        y = torch.randint(self.task.num_classes, (drawn,), generator=self.rng, device=self.device)
        return y.expand(n)

    @torch.no_grad()
    def look(self) -> None:
        """Show callbacks composites of evenly spaced classes, made in eval mode, a few at a time."""
        training = self.generator.training
        y = torch.arange(self.shown, device=self.device) * self.task.num_classes // self.shown
        self.generator.eval()
        x = torch.cat([self.generator(self.latents(len(part)), part) for part in y.split(8)])
        self.generator.train(training)
        self.seen = LastBatch(x, 10 * torch.nn.functional.one_hot(y, self.task.num_classes).float())

    def rank_state(self) -> dict[str, Any]:
        """The accumulated gradients, and the images last shown to callbacks."""
        added = {name: p.grad for name, p in self.generator.named_parameters() if p.grad is not None}
        return {"gradients": added} | ({} if self.seen is None else {"seen": tuple(self.seen)})

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        weights = dict(self.generator.named_parameters())
        for name, grad in state["gradients"].items():
            weights[name].grad = grad.to(self.device)
        if "seen" in state:
            self.seen = LastBatch(*(tensor.to(self.device) for tensor in state["seen"]))
