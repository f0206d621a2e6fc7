"""CMI: contrastive model inversion for data-free knowledge distillation (Fang et al., IJCAI 2021).

A generator that is reinitialised for every batch inverts the teacher well, but its batches resemble each other. CMI
adds a contrastive loss: from the teacher's features of a part of an image, a trained head has to tell the image from
the others of the batch and from those of earlier batches. The images go to a pool, on which the student is
distilled.

With ``exchange`` the student's images are new compositions of those made: SpaceshipNet's channel-wise feature exchange
(Yu et al., CVPR 2023). The generator is kept from batch to batch, and with it the first maps of every image. In a share
of the student's steps half of the channels of an image's maps are another's, and the generator renders the mixture.

Deviations (paper / authors' code / here):
    * Bank of features: - / in the round that fills it nothing is returned, the loss is NaN, and so is the head ever
      after / a ring that returns what was written.
    * Features: the teacher's representation / channel means of every batch norm's input, of four stages for
      ResNet-34 / the same; ``features`` names the modules.
    * Keys: - / projected with a graph, then detached / projected without one, the same.
    * Pool: - / 50,000 images made before, in the rows with the best numbers, of which those for WRN-40-2 were
      released / empty at first, the authors' configuration from scratch.
    * Student: - / shuffled passes over the pool / draws with replacement.
    * Exchange: maps of several layers / one of three layers, drawn for each step, at full precision / the first
      layer, in half precision. Latents learn here as without it, theirs do not; their attention maps are no part.
    * Several processes: - / - / one generator and head for all, latents and bank of each one's own.
    * Result: - / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.data.loader import Augmentation
from kd_lightning.errors import ConfigError
from kd_lightning.losses.adversarial import masked_kl
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.contrastive import info_nce
from kd_lightning.methods.base.distiller import OptimizerFactory
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.image_pool import ImagePool
from kd_lightning.methods.base.phases import restart
from kd_lightning.methods.base.statistics import Best
from kd_lightning.methods.data_free.channel_exchange import exchange_channels


class Cmi(ImagePool):
    """One training batch takes ``per_batch`` steps: of generator and latents, or of the student.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer_g: makes the generator's optimiser.
        latent: length of z.
        batch_size: images made together, per rank.
        num_classes: number of the teacher's classes.
        local: the augmentation of the local view; ``augment`` is that of the global one.
        optimizer_head: makes the head's optimiser.
        steps: generator steps for one batch of images, a multiple of ``per_batch``.
        bn: weight of the batch-norm statistics.
        oh: weight of the cross-entropy to the labels drawn.
        adv: weight of the adversarial term against the student; 0 omits it.
        cr: weight of the contrastive loss.
        cr_temperature: tau of the contrastive loss.
        head_dim: length of a projected feature.
        features: modules of the teacher whose inputs are the features; None takes all batch norms.
        bank_size: images whose features are kept.
        negatives: most of them that a step is contrasted with.
        exchange: share of the student's steps whose images exchange channels; 0 is CMI, 0.7 SpaceshipNet.
        **pool: see :class:`ImagePool`.

    Raises:
        ConfigError: ``exchange`` is no share, or the generator has no ``maps`` and ``render``.
    """

    generator_lr = "method.optimizer_g.lr"

    def __init__(
        self,
        *,
        generator: nn.Module,
        optimizer_g: OptimizerFactory,
        num_classes: int,
        local: Sequence[Augmentation],
        optimizer_head: OptimizerFactory,
        latent: int = 256,
        batch_size: int = 256,
        steps: int = 200,
        bn: float = 1.0,
        oh: float = 1.0,
        adv: float = 0.5,
        cr: float = 0.8,
        cr_temperature: float = 0.1,
        head_dim: int = 256,
        features: Sequence[str] | None = None,
        bank_size: int = 40960,
        negatives: int = 4096,
        exchange: float = 0.0,
        **pool: Any,
    ) -> None:
        super().__init__(**pool)
        if not 0 <= exchange <= 1:
            raise ConfigError(f"method.exchange={exchange}: expected a share of the steps from 0 to 1, such as 0.7")
        if exchange and not (hasattr(generator, "maps") and hasattr(generator, "render")):
            raise ConfigError(
                f"method.exchange={exchange}: {type(generator).__name__} has no methods maps(z) and render(maps); "
                "type method.exchange=0, or give them to the generator"
            )
        if steps % self.per_batch:
            raise ValueError(f"per_batch must divide steps={steps}, got {self.per_batch}")
        self.generator: Any = generator
        self.latent, self.batch_size = latent, batch_size
        self.make_optimizer_g, self.make_optimizer_head = optimizer_g, optimizer_head
        self.num_classes, self.local = num_classes, tuple(local)
        self.steps, self.bn, self.oh, self.adv = steps, bn, oh, adv
        self.cr, self.cr_temperature, self.negatives = cr, cr_temperature, negatives
        self.taps = self.batch_norms() if features is None else tuple(features)
        d = self.feature_length()
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, head_dim))
        self.exchange, self.maps = exchange, ImageBuffer(dtype=torch.float16)
        self.bank = ImageBuffer(bank_size, dtype=torch.float32)
        self.z, self.y, self.best = torch.empty(0), torch.empty(0), Best()

    def configure_optimizers(self) -> Any:
        """The optimisers of student, generator and head, in this order."""
        students, schedules = super().configure_optimizers()
        opt_g = self.make_optimizer_g(self.generator.parameters())
        return [*students, opt_g, self.make_optimizer_head(self.head.parameters())], schedules

    def distils(self, n: int) -> bool:
        """Whether training batch ``n`` comes after the slices of its round, so that it trains the student."""
        return self.place(n) >= self.slices

    @property
    def slices(self) -> int:
        """Number of training batches that make one batch of images."""
        return self.steps // self.per_batch

    def place(self, n: int) -> int:
        """Position of training batch ``n`` of the fit in its round of the paper: slices first, then the student's."""
        return n % self.rounds_an_epoch()

    def rounds_an_epoch(self) -> int:
        """Training batches of one round of the paper."""
        return self.slices + self.kd_steps // self.per_batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Synthesise images, or train the student."""
        place = self.place(self.rounds_done)
        if self.distils(self.rounds_done):
            self.record(kd=self.distil())
            return
        if place == 0:
            self.begin()
        with frozen(self.student, in_eval=True):
            for _ in range(self.per_batch):
                losses = self.synthesise()
        self.terms_seen.note(losses, self.rounds_done)
        if place == self.slices - 1:
            self.commit()
            self.report({f"train/{name}": loss.item() for name, loss in losses.items()})

    def begin(self) -> None:
        """Reinitialise the generator, unless it is kept, and draw new latents and labels."""
        if not self.exchange or not len(self.pool):
            self.redraw_generator()
        restart(self.opts()[1])
        self.z = self.noise(self.batch_size, self.latent).requires_grad_()
        self.y = torch.randint(self.num_classes, (self.batch_size,), generator=self.rng, device=self.device)
        self.opt_z = self.make_optimizer_g([self.z])
        self.best = Best()

    def synthesise(self) -> dict[str, Tensor]:
        """Take one step of generator, latents and head; returns the loss terms."""
        made = self.generator.maps(self.z) if self.exchange else None
        x = self.generator(self.z) if made is None else self.generator.render(made)

        # Inversion, on the global view
        view = self.view(x)
        with BatchNormTap(self.white.net) as tap, capture(self.white.net, inputs=self.taps) as maps:
            t = self.white(view)
        losses = {
            "bn": self.bn * batch_norm_statistics(tap.statistics, tap.layers),
            "oh": self.oh * F.cross_entropy(t.float(), self.y),
        }
        if self.adv:
            losses["adv"] = self.adv * masked_kl(self.student(view), t)
        global_features = pooled_maps(maps)

        # Contrast: match each local view with the global view of its own image, in the batch and in the bank
        part = x
        for augmentation in self.local:
            part = augmentation(part, self.rng)
        with capture(self.white.net, inputs=self.taps) as maps:
            self.white(part)
        local_features = pooled_maps(maps)
        cached_local, cached_global = self.cached(local_features)
        query = F.normalize(self.head(torch.cat([local_features, cached_local])))
        with torch.no_grad():
            key = F.normalize(self.head(torch.cat([global_features, cached_global])))
        losses["cr"] = self.cr * info_nce(query, key, temperature=self.cr_temperature, fresh=len(x))

        loss = torch.stack(list(losses.values())).sum()
        features = torch.cat([local_features, global_features], 1)
        self.best.offer(loss, x, t, features, *([] if made is None else [made]))
        optimizers: list[Any] = [*self.opts()[1:], self.opt_z]
        for opt in optimizers:
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in optimizers:
            opt.step()
        return losses

    def commit(self) -> None:
        """Add the images of the best step to the pool, and their features to the bank."""
        _, x, t, features, *maps = self.best.kept
        self.pool.add(x)
        for made in maps:
            self.maps.add(made)
        self.bank.add(features)
        self.show(x, t)
        self.z, self.y, self.best = torch.empty(0), torch.empty(0), Best()

    @torch.no_grad()
    def lesson(self, n: int) -> tuple[Tensor, Tensor]:
        """``n`` images (n, C, H, W) of the pool or, with ``exchange``, rendered anew; and the answers (n, K)."""
        if not self.exchange:
            return super().lesson(n)
        maps = self.maps.sample(n, self.rng)
        exchanging = torch.rand((), generator=self.rng, device=self.device) < self.exchange
        mixed = torch.where(exchanging, exchange_channels(maps, self.rng), maps)
        x = self.view(self.generator.render(mixed.float()))
        return x, self.white(x)

    def cached(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Local and global features (N', D) of N' <= ``negatives`` earlier images, without repetition."""
        if not len(self.bank):
            return like[:0], like[:0]
        index = torch.randperm(len(self.bank), generator=self.rng, device=like.device)[: self.negatives]
        local, global_ = self.bank.rows[index].chunk(2, 1)
        return local, global_

    @torch.no_grad()
    def redraw_generator(self) -> None:
        """Reinitialise the generator: weights N(0, 0.02), those of batch norms N(1, 0.02), biases 0."""
        rng = self.common_rng()
        for layer in self.generator.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and layer.weight is not None:
                mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
                layer.weight.copy_(mean + 0.02 * torch.randn(layer.weight.shape, generator=rng))
                if layer.bias is not None:
                    layer.bias.zero_()

    def batch_norms(self) -> tuple[str, ...]:
        """Paths of the teacher's batch norms."""
        return tuple(path for path, m in self.white.net.named_modules() if isinstance(m, _BatchNorm))

    @torch.no_grad()
    def feature_length(self) -> int:
        """Length D of an image's feature."""
        device = next(self.white.net.parameters()).device
        x = self.generator.eval()(torch.zeros(1, self.latent)).to(device)
        self.generator.train()
        with capture(self.white.net, inputs=self.taps) as maps:
            self.white.net(x)
        return pooled_maps(maps).shape[1]

    def rank_state(self) -> dict[str, Any]:
        """The bank and the unfinished batch, too."""
        state = {**super().rank_state(), "bank": self.bank.save(self.beside("bank"))}
        if self.exchange:
            state["maps"] = self.maps.save(self.beside("maps"))
        if len(self.z):
            unfinished = {"z": self.z.detach(), "y": self.y, "best": self.best.kept, "opt_z": self.opt_z.state_dict()}
            state["unfinished"] = unfinished
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_rank_state(state)
        self.bank.load(self.beside("bank"), state["bank"], self.device)
        if self.exchange:
            self.maps.load(self.beside("maps"), state["maps"], self.device)
        if "unfinished" in state:
            unfinished = state["unfinished"]
            self.z = unfinished["z"].to(self.device).requires_grad_()
            self.y = unfinished["y"].to(self.device)
            self.best = Best(*(tensor.to(self.device) for tensor in unfinished["best"]))
            self.opt_z = self.make_optimizer_g([self.z])
            self.opt_z.load_state_dict(unfinished["opt_z"])


def pooled_maps(maps: dict[str, Tensor]) -> Tensor:
    """Means over positions of maps (N, C, ...), side by side: (N, sum of C) in fp32."""
    return torch.cat([m.float().reshape(*m.shape[:2], -1).mean(2) for m in maps.values()], 1)
