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
    * Labelled pairs of the discriminator: a draw of their own / likewise / ``d_labelled`` of the classifier's.
    * Labels of good images: uniform / uniform / every class equally often, or by ``prior``.
    * Good images of the discriminator's step: - / drawn anew for the generator's / the same for both.
    * First epochs, ``pretrain``: - / the whole loss, but only the classifier learns / labels, entropy and balance.
    * Moving average: - / begins at 0 in Triple-GAN's; is kept, but not tested, in UGAN's / begins at the first weights.
    * Latents of both generators: uniform in [0, 1].
    * Batch norm: in the classifier, on logits even, with which the bad half cannot work / likewise / refused.
    * Manifold term: - / moves of 1e-5, not divided by them / of ``manifold_step``, divided by its square.
    * Weight decay of the last layer, ZCA whitening, PixelCNN, encoder: none; the optimiser may decay all weights.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.data.batches import StreamsBatch
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
    weighted_kl,
)
from kd_lightning.methods.base.distiller import LastBatch
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.semi_supervised.players import FourPlayers, every_label


class Ugan(FourPlayers):
    """One round: a step of the pair discriminator, of the good generator, of the classifier, of the bad generator.

    Args:
        lambda_g: weight of the good half; 0 leaves discriminator and good generator out.
        lambda_b: weight of the bad half; 0 leaves the bad generator out.
        entropy: weight of the mean entropy on images without labels (w_H).
        balance: weight of the class balance.
        fool: weight of the classifier's loss against the discriminator.
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
        **players: see :class:`FourPlayers`.
    """

    def __init__(
        self,
        *,
        lambda_g: float = 1.0,
        lambda_b: float = 1.0,
        entropy: float = 0.3,
        balance: float = 1e-3,
        fool: float = 0.005,
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
        **players: Any,
    ) -> None:
        super().__init__(**players)
        self.lambda_g, self.lambda_b, self.entropy, self.balance = lambda_g, lambda_b, entropy, balance
        self.fool, self.good, self.good_from, self.pretrain = fool, good, good_from, pretrain
        self.consistency, self.consistency_ramp = consistency, consistency_ramp
        self.fm_norm, self.pull_away, self.pull_away_variant = fm_norm, pull_away, pull_away_variant
        self.manifold, self.manifold_step = manifold, manifold_step
        self.kd_good, self.kd_bad, self.kd_unlabelled = kd_good, kd_bad, kd_unlabelled
        self.temperature, self.bad_temperature = temperature, bad_temperature
        self.has_good, self.has_bad = bool(lambda_g or kd_good), bool(lambda_b or kd_bad)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Labelled images and others, classes, a student without batch norm; a teacher if it is imitated."""
        imitates = any(settings.get(f"kd_{of}", 0) for of in ("good", "bad", "unlabelled"))
        return {"source.two_streams", "task.classification", "student.no_batch_norm"} | (
            {"teacher"} if imitates else set()
        )

    def training_step(self, batch: StreamsBatch, batch_idx: int) -> None:
        """One batch of both streams."""
        opt_c, opt_d, opt_g, opt_b = self.opts()
        x_u, x_ud, x_ub = self.slices(batch.unlabelled.x)
        playing = self.current_epoch >= self.pretrain
        terms: dict[str, Tensor] = {}

        # Discriminator of pairs, and good generator
        if self.has_good and playing:
            y_g = self.labels(self.made)
            x_g = self.good_images(y_g)
            terms["d"], on_real, on_made = self.judge(batch, x_u, x_ud, x_g.detach(), y_g)
            self.update(opt_d, terms["d"])
            self.pairs.add(on_real, on_made)
            terms |= {"on_real": on_real.sigmoid().mean(), "on_made": on_made.sigmoid().mean()}
            with frozen(self.discriminator):
                terms["g"] = pair_g(self.discriminator(x_g, y_g))
                self.update(opt_g, terms["g"])
            self.seen = LastBatch(x_g.detach(), 10 * nn.functional.one_hot(y_g, self.task.num_classes).float())

        # Classifier
        losses, watched = self.classify(batch, x_u, x_ub, playing=playing)
        self.update(opt_c, torch.stack(list(losses.values())).sum())
        self.keep()

        # Bad generator
        if self.has_bad and playing:
            x_b = self.bad_images(self.latents(self.made_bad))
            with frozen(self.classifier):
                f_b = self.gathered(self.features_of(x_b))
                with torch.no_grad():
                    f_u = self.gathered(self.features_of(x_ub))
                terms["b"] = feature_matching(f_b, f_u, norm=self.fm_norm)
                if self.pull_away:
                    terms["b"] = terms["b"] + self.pull_away * pull_away(f_b, variant=self.pull_away_variant)
                self.update(opt_b, terms["b"])
            if not self.has_good:
                self.seen = LastBatch(x_b.detach(), torch.zeros(len(x_b), self.task.num_classes, device=self.device))

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
        self, batch: StreamsBatch, x_u: Tensor, x_ub: Tensor, *, playing: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The classifier's losses, and how real it finds real and bad images."""
        weight = self.good if self.current_epoch >= self.good_from else 0.0
        images = {"l": batch.labelled.x, "u": x_u}
        if good := self.has_good and playing and bool(weight or self.kd_good):
            y_g = self.labels(self.made)
            with torch.no_grad():
                images["g"] = self.good_images(y_g)
        if bad := self.has_bad and playing:
            z = self.latents(self.made_bad)
            with torch.no_grad():
                images["b"] = self.bad_images(z)
                if self.manifold:
                    way = nn.functional.normalize(self.noise(*z.shape), dim=1)
                    images["moved"] = self.bad_images(z + self.manifold_step * way)
            images |= {"ub": x_ub} if self.b_unlabelled else {}
        if self.consistency:
            images["again"] = x_u
        logits = self.classifier(torch.cat(list(images.values()))).split([len(x) for x in images.values()])
        to = dict(zip(images, logits, strict=True))

        losses = {"label": self.task.loss(to["l"], batch.labelled.y)}
        losses["entropy"] = self.entropy * conditional_entropy(to["u"])
        losses["balance"] = self.balance * class_balance(self.gathered(to["u"]), self.prior)
        if self.lambda_g and playing:
            losses["fool"] = self.lambda_g * self.fool * fooling(to["u"], self.scores(x_u, to["u"]))
        if good and weight:
            losses["good"] = self.lambda_g * weight * self.task.loss(to["g"], y_g)
        watched = {}
        if bad:
            real = to.get("ub", to["u"])
            losses["bad"] = self.lambda_b * real_or_made(real, to["b"])
            watched = {"p_real": p_real(real).mean(), "p_bad": p_real(to["b"]).mean()}
            if self.manifold:
                losses["manifold"] = (
                    self.lambda_b * self.manifold * manifold(to["b"], to["moved"], step=self.manifold_step)
                )
        if self.consistency:
            change = (to["u"].float().softmax(1) - to["again"].float().softmax(1)).square().mean()
            losses["consistency"] = self.consistency * ramp(self.current_epoch, self.consistency_ramp) * change
        if self.kd_good and good:
            losses["kd_good"] = self.kd_good * self.imitate(images["g"], to["g"], y_g)
        if self.kd_unlabelled:
            losses["kd_unlabelled"] = self.kd_unlabelled * self.imitate(x_u, to["u"])
        if self.kd_bad and bad:
            t = self.answers(images["b"])
            losses["kd_bad"] = self.kd_bad * weighted_kl(to["b"], t, torch.ones(len(t)).to(t), self.bad_temperature)
        return losses, watched

    def imitate(self, x: Tensor, logits: Tensor, y: Tensor | None = None) -> Tensor:
        """The student's distance from the teacher's answers, weighted by how real the discriminator finds the pair.

        Args:
            x: images (N, C, H, W).
            logits: the student's (N, K).
            y: labels (N,) for which they were drawn: images that the teacher puts elsewhere do not count. None for the
                teacher's.
        """
        t = self.answers(x)
        of = t.argmax(1)
        with torch.no_grad():
            weight = (
                self.discriminator(x, of if y is None else y).sigmoid() if self.has_good else torch.ones(len(x)).to(t)
            )
        return weighted_kl(logits, t, weight if y is None else weight * (of == y), self.temperature)

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """The teacher's answers (N, K) to images."""
        assert self.teacher is not None
        return self.teacher(x)


def p_real(logits: Tensor) -> Tensor:
    """Probability (N,) of "real" that logits (N, K) tell beside the logit 0 of "made"."""
    return logits.detach().float().logsumexp(1).sigmoid()


def ramp(epoch: int, epochs: int) -> float:
    """exp(-5 (1 - e)^2), where e rises from 0 to 1 over the first ``epochs``."""
    return math.exp(-5 * (1 - min(1.0, epoch / max(1, epochs))) ** 2)
