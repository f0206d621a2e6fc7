"""UGAN: a classifier learns from few labels with a good and a bad generator (Li et al., arXiv 1910.08540; MVA 2020).

The good generator draws images of a class, which the classifier learns as if they were labelled; a discriminator of
pairs (image, label) judges its images and the classifier's labels (Triple-GAN, Li et al., NeurIPS 2017). The bad
generator matches mean features only, so that its images lie between the classes, and the classifier learns to tell them
from real ones, which moves its boundary there (Bad GAN, Dai et al., NeurIPS 2017). ``lambda_b=0`` is Triple-GAN and
``lambda_g=0`` Bad GAN. The student is a moving average of the classifier's weights: it is tested and exported.

With a teacher (``method=ugan_kd``, no paper's) the classifier also imitates it: on good images whose class it confirms,
on bad ones, which lie near the boundary, and on images without labels, weighted by how real the discriminator finds
the pair.

Deviations (paper / authors' code / here):
    * lambda_g, lambda_b: not at hand / 1 or fed from outside / 1. They do not multiply the entropy and balance terms,
      which Bad GAN has, too.
    * Labelled pairs of the discriminator: a draw of their own / likewise / the first ``d_labelled`` of the classifier's.
    * Labels of good images: uniform / uniform / every class equally often, or by ``prior``.
    * Good images of the discriminator's step: - / drawn anew for the generator's / the same for both.
    * First epochs, ``pretrain``: - / the whole loss, but only the classifier learns / labels, entropy and balance.
    * The moving average begins at the first weights, in Triple-GAN's code at 0; UGAN's code keeps it and tests the other.
    * Latents of both generators: uniform in [0, 1].
    * Batch norm: in the classifier, on logits even, with which the bad half cannot work / likewise / refused.
    * Manifold term: - / moves of 1e-5, not divided by them / of ``manifold_step``, divided by its square.
    * Weight decay of the last layer, ZCA whitening, PixelCNN, encoder: none; the optimiser may decay all weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.core.feature_hooks import capture
from kd_lightning.data.batches import StreamsBatch
from kd_lightning.distributed import collectives
from kd_lightning.errors import ConfigError
from kd_lightning.losses.response import kl
from kd_lightning.losses.semi_supervised import (
    class_balance,
    conditional_entropy,
    feature_matching,
    fooling,
    manifold,
    pair_d,
    pair_g,
    pull_away,
    real_or_made,
)
from kd_lightning.methods.base.conditional_gan import average
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.semi_supervised.pair_monitor import PairMonitor
from kd_lightning.networks import head_of


class Ugan(Distiller):
    """One round: a step of the pair discriminator, of the good generator, of the classifier, of the bad generator.

    Args:
        discriminator: images (N, C, H, W) in [0, 1] and labels (N,) to scores (N,), high for real pairs.
        generator: the good one; latents (N, latent) and labels (N,) to images.
        bad_generator: latents to images.
        optimizer: makes the classifier's optimiser.
        optimizer_d: makes the discriminator's.
        optimizer_g: makes the good generator's.
        optimizer_b: makes the bad generator's.
        scheduler: schedule of the classifier's learning rate, stepped once an epoch.
        scheduler_g: that of the three others.
        latent: length of z.
        made: images of each generator in a step, per rank.
        d_labelled: labelled images of a batch that the discriminator sees as real pairs.
        d_unlabelled: unlabelled images of a batch that it sees as real pairs with the classifier's labels.
        b_unlabelled: unlabelled images of a batch for the bad half; 0: those that the classifier's other terms see, which
            are all that the two others leave.
        lambda_g: weight of the good half; 0 leaves discriminator and good generator out.
        lambda_b: weight of the bad half; 0 leaves the bad generator out.
        entropy: weight of the mean entropy on images without labels (w_H).
        balance: weight of the class balance.
        prior: share of each class, which balance and good images follow; None for equal shares.
        fool: weight of the classifier's loss against the discriminator.
        adversarial: its form, ``argmax`` of the classifier's labels or ``integrate`` over all.
        good: weight of the cross-entropy on good images (lambda_1, the pseudo-discriminative loss).
        good_from: epoch from which that counts.
        pretrain: first epochs, in which only the classifier learns, without generators.
        consistency: largest weight of the squared difference of two noisy predictions for an image without label.
        consistency_ramp: epochs over which it rises.
        fm_norm: distance of the mean features, ``l1`` or ``l2``, the square.
        pull_away: weight of the bad images' pull-away term.
        pull_away_variant: ``paper`` or ``code``, see the loss.
        manifold: weight of the manifold term.
        manifold_step: length of its moves.
        kd_good: weight of imitation on good images; with 0 in all three, the teacher takes no part.
        kd_bad: weight of imitation on bad images.
        kd_unlabelled: weight of imitation on images without labels.
        temperature: T of imitation, but on bad images.
        bad_temperature: T there.
        ema: decay of the moving average; None tests the classifier itself.
        **base: see :class:`Distiller`.

    Raises:
        ValueError: nothing is left to learn from, or a setting is out of its range.
    """

    keeps = ("generator", "bad_generator", "discriminator")
    generator_lr = "method.optimizer_g.lr or method.optimizer_b.lr"

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        generator: nn.Module,
        bad_generator: nn.Module,
        optimizer: OptimizerFactory,
        optimizer_d: OptimizerFactory,
        optimizer_g: OptimizerFactory,
        optimizer_b: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        scheduler_g: SchedulerFactory | None = None,
        latent: int = 100,
        made: int = 100,
        d_labelled: int = 20,
        d_unlabelled: int = 80,
        b_unlabelled: int = 0,
        lambda_g: float = 1.0,
        lambda_b: float = 1.0,
        entropy: float = 0.3,
        balance: float = 1e-3,
        prior: Sequence[float] | None = None,
        fool: float = 0.005,
        adversarial: Literal["argmax", "integrate"] = "argmax",
        good: float = 0.1,
        good_from: int = 200,
        pretrain: int = 0,
        consistency: float = 0.0,
        consistency_ramp: int = 80,
        fm_norm: Literal["l1", "l2"] = "l1",
        pull_away: float = 0.0,
        pull_away_variant: Literal["paper", "code"] = "paper",
        manifold: float = 0.0,
        manifold_step: float = 1e-2,
        kd_good: float = 0.0,
        kd_bad: float = 0.0,
        kd_unlabelled: float = 0.0,
        temperature: float = 4.0,
        bad_temperature: float = 1.0,
        ema: float | None = 0.9999,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if any(isinstance(module, _BatchNorm) for module in self.student.modules()):
            raise ValueError(f"{type(self).__name__} trains no student with batch norm: use student=noisy_mlp")
        self.discriminator, self.generator, self.bad_generator = discriminator, generator, bad_generator
        self.classifier = self.student
        if ema is not None:
            self.classifier = copy.deepcopy(self.student)
            self.student.requires_grad_(False)
        self.make_optimizer, self.make_optimizer_d = optimizer, optimizer_d
        self.make_optimizer_g, self.make_optimizer_b = optimizer_g, optimizer_b
        self.make_scheduler, self.make_scheduler_g = scheduler, scheduler_g
        self.latent, self.made = latent, made
        self.d_labelled, self.d_unlabelled, self.b_unlabelled = d_labelled, d_unlabelled, b_unlabelled
        self.lambda_g, self.lambda_b, self.entropy, self.balance = lambda_g, lambda_b, entropy, balance
        shares = torch.tensor(prior or [1.0] * self.task.num_classes)
        self.register_buffer("prior", shares / shares.sum(), persistent=False)
        self.fool, self.adversarial, self.good, self.good_from = fool, adversarial, good, good_from
        self.pretrain, self.consistency, self.consistency_ramp = pretrain, consistency, consistency_ramp
        self.fm_norm, self.pull_away, self.pull_away_variant = fm_norm, pull_away, pull_away_variant
        self.manifold, self.manifold_step = manifold, manifold_step
        self.kd_good, self.kd_bad, self.kd_unlabelled = kd_good, kd_bad, kd_unlabelled
        self.temperature, self.bad_temperature, self.ema = temperature, bad_temperature, ema
        self.has_good, self.has_bad = bool(lambda_g or kd_good), bool(lambda_b or kd_bad)
        self.head = head_of(self.classifier)
        self.pairs = PairMonitor()

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Labelled images and others, classes, a student without batch norm; a teacher if it is imitated."""
        imitates = any(settings.get(f"kd_{of}", 0) for of in ("good", "bad", "unlabelled"))
        return {"source.two_streams", "task.classification", "student.no_batch_norm"} | (
            {"teacher"} if imitates else set()
        )

    def configure_optimizers(self) -> Any:
        """Classifier, discriminator, good generator, bad generator."""
        return self.scheduled(
            (self.make_optimizer(self.classifier.parameters()), self.make_scheduler),
            (self.make_optimizer_d(self.discriminator.parameters()), self.make_scheduler_g),
            (self.make_optimizer_g(self.generator.parameters()), self.make_scheduler_g),
            (self.make_optimizer_b(self.bad_generator.parameters()), self.make_scheduler_g),
        )

    def training_step(self, batch: StreamsBatch, batch_idx: int) -> None:
        """One batch of both streams."""
        opt_c, opt_d, opt_g, opt_b = self.opts()
        x_u, x_ud, x_ub = self.slices(batch.unlabelled.x)
        apart = self.current_epoch >= self.pretrain
        terms: dict[str, Tensor] = {}

        # Discriminator of pairs, and good generator
        if self.has_good and apart:
            y_g = self.labels(self.made)
            x_g = self.generator(self.latents(self.made), y_g)
            terms["d"], on_real, on_made = self.judge(batch, x_u, x_ud, x_g.detach(), y_g)
            self.update(opt_d, terms["d"])
            self.pairs.add(on_real, on_made)
            terms |= {"on_real": on_real.sigmoid().mean(), "on_made": on_made.sigmoid().mean()}
            with frozen(self.discriminator):
                terms["g"] = pair_g(self.discriminator(x_g, y_g))
                self.update(opt_g, terms["g"])
            self.show(x_g, 10 * nn.functional.one_hot(y_g, self.task.num_classes).float())

        # Classifier
        losses, watched = self.classify(batch, x_u, x_ub, apart=apart)
        self.update(opt_c, torch.stack(list(losses.values())).sum())
        if self.ema is not None:
            average(self.student, self.classifier, self.ema)

        # Bad generator
        if self.has_bad and apart:
            x_b = self.bad_generator(self.latents(self.made))
            with frozen(self.classifier):
                f_b = self.gathered(self.features_of(x_b))
                with torch.no_grad():
                    f_u = self.gathered(self.features_of(x_ub))
                terms["b"] = feature_matching(f_b, f_u, norm=self.fm_norm)
                if self.pull_away:
                    terms["b"] = terms["b"] + self.pull_away * pull_away(f_b, variant=self.pull_away_variant)
                self.update(opt_b, terms["b"])
            if self.has_good:
                self.images_made += len(x_b) * collectives.world()
            else:
                self.show(x_b, torch.zeros(len(x_b), self.task.num_classes, device=self.device))

        self.record(**losses, **terms, **watched)

    def judge(self, batch: StreamsBatch, x_u: Tensor, x_ud: Tensor, x_g: Tensor, y_g: Tensor) -> tuple[Tensor, ...]:
        """The discriminator's loss, and its scores of real and of generated pairs."""
        assert batch.labelled.y is not None
        x_ld, y_ld = batch.labelled.x[: self.d_labelled], batch.labelled.y[: self.d_labelled]
        with torch.no_grad():
            of_u, of_ud = self.classifier(torch.cat([x_u, x_ud])).split([len(x_u), len(x_ud)])
        pairs_x, pairs_y, probs = x_u, of_u.argmax(1), None
        if self.adversarial == "integrate":
            pairs_x, pairs_y, probs = *every_label(x_u, self.task.num_classes), of_u.float().softmax(1)
        x, y = torch.cat([x_ld, x_ud, x_g, pairs_x]), torch.cat([y_ld, of_ud.argmax(1), y_g, pairs_y])
        on_real, on_made, on_c = self.discriminator(x, y).split([len(x_ld) + len(x_ud), len(x_g), len(pairs_x)])
        return pair_d(on_real, on_made, on_c if probs is None else on_c.view_as(probs), probs), on_real, on_made

    def classify(
        self, batch: StreamsBatch, x_u: Tensor, x_ub: Tensor, *, apart: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The classifier's losses, and how real it finds real and bad images."""
        weight = self.good if self.current_epoch >= self.good_from else 0.0
        images = {"l": batch.labelled.x, "u": x_u}
        if good := self.has_good and apart and bool(weight or self.kd_good):
            y_g = self.labels(self.made)
            with torch.no_grad():
                images["g"] = self.generator(self.latents(self.made), y_g)
        if bad := self.has_bad and apart:
            z = self.latents(self.made)
            with torch.no_grad():
                images["b"] = self.bad_generator(z)
                if self.manifold:
                    way = nn.functional.normalize(self.noise(*z.shape), dim=1)
                    images["moved"] = self.bad_generator(z + self.manifold_step * way)
            images |= {"ub": x_ub} if self.b_unlabelled else {}
        if self.consistency:
            images["again"] = x_u
        logits = self.classifier(torch.cat(list(images.values()))).split([len(x) for x in images.values()])
        to = dict(zip(images, logits, strict=True))

        losses = {"label": self.task.loss(to["l"], batch.labelled.y)}
        losses["entropy"] = self.entropy * conditional_entropy(to["u"])
        losses["balance"] = self.balance * class_balance(self.gathered(to["u"]), self.prior)
        if self.lambda_g and apart:
            losses["fool"] = self.lambda_g * self.fool * fooling(to["u"], self.scores(x_u, to["u"]))
        if good and weight:
            losses["good"] = self.lambda_g * weight * self.task.loss(to["g"], y_g)
        watched = {}
        if bad:
            real = to.get("ub", to["u"])
            losses["bad"] = self.lambda_b * real_or_made(real, to["b"])
            watched = {f"real_of_{of}": lse(x).sigmoid().mean() for of, x in (("real", real), ("bad", to["b"]))}
            if self.manifold:
                losses["manifold"] = (
                    self.lambda_b * self.manifold * manifold(to["b"], to["moved"], step=self.manifold_step)
                )
        if self.consistency:
            apart_by = (to["u"].float().softmax(1) - to["again"].float().softmax(1)).square().mean()
            losses["consistency"] = self.consistency * ramp(self.current_epoch, self.consistency_ramp) * apart_by
        return losses, watched

    @torch.no_grad()
    def scores(self, x: Tensor, logits: Tensor) -> Tensor:
        """The discriminator's scores of images with their most likely label (N,), or with ``integrate`` all (N, K)."""
        if self.adversarial == "argmax":
            return self.discriminator(x, logits.argmax(1))
        return self.discriminator(*every_label(x, logits.shape[1])).view_as(logits)

    def slices(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images without labels (N, C, H, W) for the classifier, the discriminator's pairs and the bad half."""
        rest = len(x) - self.d_unlabelled - self.b_unlabelled
        if rest < 1:
            raise ConfigError(
                f"source.unlabelled_batch_size={len(x)}: method.d_unlabelled={self.d_unlabelled} and "
                f"method.b_unlabelled={self.b_unlabelled} leave none for the classifier's own terms; set at least "
                f"source.unlabelled_batch_size={self.d_unlabelled + self.b_unlabelled + 1}"
            )
        x_u, x_ud, x_ub = x.split([rest, self.d_unlabelled, self.b_unlabelled])
        return x_u, x_ud, x_ub if self.b_unlabelled else x_u

    def features_of(self, x: Tensor) -> Tensor:
        """Features (N, D) of images: what enters the classifier's last layer."""
        with capture(self.classifier, inputs=(self.head,)) as taps:
            self.classifier(x)
        return taps[self.head].flatten(1)

    def latents(self, n: int) -> Tensor:
        """Latents (n, latent), uniform in [0, 1]."""
        return torch.rand(n, self.latent, generator=self.rng, device=self.device)

    def labels(self, n: int) -> Tensor:
        """Labels (n,) int64 in the shares of ``prior``, which classes get one more is random."""
        places = (torch.arange(n, device=self.device) + torch.rand((), generator=self.rng, device=self.device)) / n
        return torch.bucketize(places, self.prior.cumsum(0)).clamp(max=self.task.num_classes - 1)

    def on_train_epoch_end(self) -> None:
        """Also say it if the discriminator wins everything."""
        super().on_train_epoch_end()
        self.pairs.tell(int(self.trainer.num_training_batches))


def every_label(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Every image (N, C, H, W) with every label: images (N K, C, H, W) and labels (N K,)."""
    return x.repeat_interleave(num_classes, 0), torch.arange(num_classes, device=x.device).repeat(len(x))


def lse(logits: Tensor) -> Tensor:
    """Logsumexp of logits (N, K) over classes, the logit (N,) of "real"."""
    return logits.detach().float().logsumexp(1)


def ramp(epoch: int, epochs: int) -> float:
    """exp(-5 (1 - e)^2), where e rises from 0 to 1 over the first ``epochs``."""
    return math.exp(-5 * (1 - min(1.0, epoch / max(1, epochs))) ** 2)
