"""Evolving generators: E-GAN, and CE-GAN, which adds a crossover by distillation.

E-GAN (Wang, Xu, Yao and Tao, IEEE TEVC 23(6), 2019, arXiv 1803.00657); CE-GAN (Li, Zhang, Gong and Lu, IJCNN 2021,
arXiv 2101.11186). A population of generators meets one discriminator. In every generation each of them is varied by one
step on each of several losses; pairs of the best variants have a child that takes one step towards the images on which
the discriminator prefers one parent to the other; the fittest of all survive, and the discriminator learns from the
very images on which they were judged. E-GAN is ``crossovers=0``; C-GAN is the crossover with a single loss; one loss,
one generator and no crossover are a GAN. Any generator can be evolved, a conditional one with ``conditional``.

Deviations (paper / authors' code / here):
    * Mutations: minimax and heuristic have a factor 1/2 / none / none.
    * Discriminator while generators are judged: - / in training mode, so that scores depend on the batch / eval mode.
    * Latents: - / E-GAN new ones for every loss and every evaluation, CE-GAN one set for the losses, one to judge
      variants, another to judge children / ``draws``: ``fresh``, ``two``, and by default ``common``, in which children
      are judged on their parents' latents, so that the selection is not of the luckier draw.
    * Optimiser of a child: - / that of the fitter parent, whose momentum moves the child even where it has nothing to
      learn, and which is then selected for it / ``child_adam``, by default without momentum.
    * Size of mutations: - / that of each loss's gradient, by which least squares, the largest, soon sets the scale of
      every step / ``mutation_grad``, by default of unit length.
    * More crossovers than pairs: - / fewer are made without a word / refused.
    * Images judged: - / at least as many as the discriminator's steps need / the same.
    * First population: - / copies of one generator / the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.data.batches import Batch
from kd_lightning.distributed import collectives
from kd_lightning.losses.evolution import diversity, quality
from kd_lightning.losses.gan import gradient_penalty, logistic_d
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.distiller import LastBatch
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.population import ChildAdam, Host, Individual, couples, fittest, lesson
from kd_lightning.methods.base.protocols import WhiteTeacher
from kd_lightning.methods.generators.evolution_monitor import EvolutionMonitor, has_batch_norm, warn_of_mixing
from kd_lightning.methods.generators.mutations import MUTATIONS, check_sizes, unit_length
from kd_lightning.networks.generators.gan_blocks import from_pixels, to_pixels

Latents = tuple[Tensor, ...]
"""z (N, latent), and for a conditional generator labels (N,)."""


class CeGan(ConditionalGan):
    """One round: one generation, then ``d_steps`` steps of the discriminator, each on its part of the batch.

    Args:
        mutations: losses by which a generator is varied: ``heuristic``, ``least_squares``, ``minimax``.
        population: survivors of a generation (mu).
        crossovers: children of a generation (n_cross), of the pairs whose fitness is highest in sum.
        cross_steps: steps of a child towards its parents' better images.
        eval_size: images on which a generator is judged, per rank.
        fitness: ``logit``, the discriminator's mean score; ``quality_diversity``, F_q + gamma F_d of E-GAN.
        gamma: weight of F_d.
        penalty: weight of the discriminator's gradient penalty.
        prior: of z, ``uniform`` in [-1, 1] or ``normal``.
        draws: which latents are shared, ``common``, ``two`` or ``fresh``; see the deviations.
        child_adam: what a child gets of its fitter parent's optimiser: ``inherit``, ``zero`` (no momentum), ``fresh``.
        mutation_grad: ``raw``, or ``unit``: gradients of all losses scaled to length 1.
        least_squares_on: what least squares moves to 1, the ``logit`` or its sigmoid, ``prob``.
        conditional: whether the networks also take labels, classes drawn evenly.
        **gan: see :class:`ConditionalGan`.

    Raises:
        ConfigError: an unknown mutation, or crossovers of more pairs than there are.
    """

    generator_lr = "method.optimizer_g.lr"

    def __init__(
        self,
        *,
        mutations: Sequence[str] = tuple(MUTATIONS),
        population: int = 1,
        crossovers: int = 1,
        cross_steps: int = 1,
        eval_size: int = 256,
        fitness: Literal["logit", "quality_diversity"] = "logit",
        gamma: float = 0.001,
        penalty: float = 10.0,
        prior: Literal["uniform", "normal"] = "uniform",
        draws: Literal["common", "two", "fresh"] = "common",
        child_adam: ChildAdam = "zero",
        mutation_grad: Literal["raw", "unit"] = "unit",
        least_squares_on: Literal["logit", "prob"] = "logit",
        conditional: bool = False,
        **gan: Any,
    ) -> None:
        check_sizes(mutations, population, crossovers, draws)
        super().__init__(**gan)
        self.mutations, self.population_size, self.crossovers = tuple(mutations), population, crossovers
        self.cross_steps, self.eval_size = cross_steps, eval_size
        self.fitness, self.gamma, self.penalty = fitness, gamma, penalty
        self.prior, self.draws, self.conditional = prior, draws, conditional
        self.child_adam, self.mutation_grad, self.least_squares_on = child_adam, mutation_grad, least_squares_on
        self.population: list[Individual] = []
        self.host: Host | None = None
        self.watch = EvolutionMonitor([*self.mutations, *(["crossover"] if crossovers else [])])
        self.mixes = has_batch_norm(self.discriminator)
        if self.mixes and penalty:
            warn_of_mixing()

    @classmethod
    def needs(
        cls,
        *,
        mutations: Sequence[str] = tuple(MUTATIONS),
        population: int = 1,
        crossovers: int = 1,
        draws: str = "common",
        conditional: bool = False,
        **settings: Any,
    ) -> set[str]:
        """Images; a conditional generator also their classes.

        Raises:
            ConfigError: as in the constructor.
        """
        check_sizes(mutations, population, crossovers, draws)
        return {"source.images"} | ({"source.labels", "task.classification"} if conditional else set())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One generation on a batch of real images."""
        opt_d, opt_g = self.opts()
        if self.host is None:
            self.host = Host(self.learner, opt_g.optimizer)
        if not self.population:
            self.population = [self.host.take("none")] * self.population_size
        part = math.ceil(len(batch.x) / self.d_steps)
        judged = max(math.ceil(len(batch.x) / self.population_size), self.eval_size)

        # Mutation, and evaluation of each mutant
        self.discriminator.eval()
        trial = self.latents(judged)
        mutants = []
        for parent in self.population:
            seed = self.latents(part)
            for mutation in self.mutations:
                seed = self.latents(part) if self.draws == "fresh" else seed
                mutants.append(self.judged(self.mutant(opt_g, parent, mutation, seed), trial, batch))
        mutants = agreed(mutants)

        # Crossover, and evaluation of each child
        again = self.latents(judged) if self.draws == "two" else trial
        pairs = couples(mutants, self.crossovers)
        children = agreed([self.judged(self.child(opt_g, pair, trial), again, batch) for pair in pairs])

        # Selection
        self.population = fittest([*mutants, *children], self.population_size)
        best = self.population[0]
        self.host.put(best)
        self.watch.select(self.population)

        # Discriminator, on the images by which the survivors were judged
        self.discriminator.train()
        made, y = self.replayed()
        real_parts, order = batch.x.chunk(self.d_steps), self.shuffled(len(made)).split(part)
        real_y = batch.y.chunk(self.d_steps) if self.conditional and batch.y is not None else [None] * self.d_steps
        for real, labels, pick in zip(real_parts, real_y, order, strict=False):
            fake = made[pick[: len(real)]]
            seen = [(self.view(real), labels), (self.view(fake), y if y is None else y[pick[: len(real)]])]
            between = [self.between(real, fake)] if self.penalty else []
            on_real, on_made, *rest = self.verdicts(*seen, *((to_pixels(points), labels) for points in between))
            losses = {"d": logistic_d(on_real, on_made)}
            for scores, points in zip(rest, between, strict=True):
                losses["penalty"] = self.penalty * gradient_penalty(scores, points)
            self.update(opt_d, torch.stack(list(losses.values())).sum())
            self.watch.count_errors(on_real, on_made)

        self.keep()
        gain = max((c.fitness for c in children), default=math.nan) - max(m.fitness for m in mutants)
        told = {"fitness": best.fitness} | ({"gain": gain} if children else {})
        self.record(
            **losses,
            **{name: torch.tensor(value, device=self.device) for name, value in told.items()},
            on_real=on_real.mean(),
            on_made=on_made.mean(),
            **self.watch.shares(),
        )

    def mutant(self, opt: LightningOptimizer, parent: Individual, mutation: str, seed: Latents) -> str:
        """Put a parent into the network and take one step on a loss, with the images of ``seed``; returns the loss."""
        assert self.host is not None
        self.host.put(parent)
        with frozen(self.discriminator):
            scores = self.verdict(self.view(self.made(seed)), *seed[1:])
            if mutation == "least_squares" and self.least_squares_on == "prob":
                scores = scores.sigmoid()
            opt.zero_grad()
            self.manual_backward(MUTATIONS[mutation](scores))
        if self.mutation_grad == "unit":
            unit_length(self.host.parameters)
        opt.step()
        return mutation

    def child(self, opt: LightningOptimizer, pair: tuple[Individual, Individual], trial: Latents) -> str:
        """Put the fitter parent into the network and take steps towards the better images, in the space of tanh."""
        assert self.host is not None
        self.host.put(pair[0])
        self.host.begin_child(self.child_adam)
        target = from_pixels(lesson(pair))
        for _ in range(self.cross_steps):
            self.update(opt, F.mse_loss(from_pixels(self.made(trial)).float(), target.float()))
        return "crossover"

    def judged(self, operator: str, trial: Latents, real: Batch) -> Individual:
        """The generator in the network, made by ``operator``, with images, scores and this rank's fitness."""
        assert self.host is not None
        latents = self.latents(len(trial[0])) if self.draws == "fresh" else trial
        self.learner.eval()
        with torch.no_grad():
            images = self.made(latents)
            scores = self.verdict(images, *latents[1:]).float()
        fitness = self.fit(scores, images, latents, real)
        self.learner.train()
        labels = latents[1] if self.conditional else None
        return replace(self.host.take(operator), images=images, labels=labels, scores=scores, fitness=fitness)

    def fit(self, scores: Tensor, images: Tensor, latents: Latents, real: Batch) -> Tensor:
        """Fitness of a generator whose images have these scores (N,): a scalar."""
        if self.fitness == "logit":
            return scores.mean()
        with torch.enable_grad():
            on_real = self.verdict(real.x, real.y if self.conditional else None)
            loss = logistic_d(on_real, self.verdict(images, *latents[1:]))
            return quality(scores) + self.gamma * diversity(loss, self.discriminator.parameters())

    def between(self, real: Tensor, fake: Tensor) -> Tensor:
        """Points on the lines between pairs of images, in the space of tanh, for the gradient penalty."""
        share = torch.rand(len(real), 1, 1, 1, device=self.device, generator=self.rng)
        return torch.lerp(from_pixels(fake), from_pixels(real), share).requires_grad_(True)

    def latents(self, n: int) -> Latents:
        """Fresh latents z (n, latent), and with ``conditional`` labels (n,)."""
        if self.prior == "normal":
            z = self.noise(n, self.latent)
        else:
            z = 2 * torch.rand(n, self.latent, device=self.device, generator=self.rng) - 1
        return (z, self.classes(n)) if self.conditional else (z,)

    def classes(self, n: int) -> Tensor:
        """Classes (n,), drawn uniformly."""
        return torch.randint(self.task.num_classes, (n,), generator=self.rng, device=self.device)

    def shuffled(self, n: int) -> Tensor:
        """The numbers below n in random order."""
        return torch.randperm(n, device=self.device, generator=self.rng)

    def made(self, latents: Latents) -> Tensor:
        """Images (N, C, H, W) of the generator that is in the network now."""
        self.images_made += len(latents[0]) * collectives.world()
        return self.learner(*latents)

    def verdict(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The discriminator's logits (N,) of images, and of their labels if it takes any."""
        scores = self.discriminator(x) if y is None else self.discriminator(x, y)
        return scores.flatten()

    def verdicts(self, *seen: tuple[Tensor, Tensor | None]) -> Sequence[Tensor]:
        """Logits of several batches: one by one if the discriminator mixes the images of a batch, else at once."""
        if self.mixes:
            return [self.verdict(*each) for each in seen]
        x, y = (list(parts) for parts in zip(*seen, strict=True))
        return self.verdict(torch.cat(x), None if y[0] is None else torch.cat(y)).split([len(each) for each in x])

    def replayed(self) -> tuple[Tensor, Tensor | None]:
        """Images (N, C, H, W) by which the survivors were judged, and labels (N,) if there are any."""
        images = torch.cat([each.images for each in self.population if each.images is not None])
        labels = [each.labels for each in self.population if each.labels is not None]
        return images, torch.cat(labels) if labels else None

    def on_train_epoch_end(self) -> None:
        """Warn of a discriminator that was right about every image, and at the end if one operator has won always."""
        super().on_train_epoch_end()
        self.watch.tell_errors(self.current_epoch + 1)
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.watch.tell_choice()

    def findings(self) -> dict[str, Any]:
        """How many survivors each operator has made: ``chosen/heuristic``."""
        return self.watch.counts()

    @torch.no_grad()
    def look(self) -> None:
        """Show callbacks images of the fittest generator, with the teacher's answers or their own labels; else none."""
        best, n = self.population[0], self.shown
        assert best.images is not None
        x = best.images[:n]
        if isinstance(self.teacher, WhiteTeacher):
            self.seen = LastBatch(x, self.white.net(x))
        elif best.labels is not None:
            self.seen = LastBatch(x, 10 * F.one_hot(best.labels[:n], self.task.num_classes).float())

    def rank_state(self) -> dict[str, Any]:
        """The population: weights, optimisers' states, and the images by which it was judged."""
        return super().rank_state() | {"population": [each.saved() for each in self.population]}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_rank_state(state)
        self.population = [Individual.restored(each, self.device) for each in state["population"]]


def agreed(individuals: Sequence[Individual]) -> list[Individual]:
    """The individuals with fitness as a number, the mean over ranks, so that all ranks select the same."""
    if not individuals:
        return []
    values = collectives.mean(torch.stack([torch.as_tensor(each.fitness) for each in individuals])).tolist()
    return [replace(each, fitness=value) for each, value in zip(individuals, values, strict=True)]
