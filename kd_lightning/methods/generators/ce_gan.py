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
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.data.batches import Batch
from kd_lightning.distributed import collectives
from kd_lightning.errors import ConfigError
from kd_lightning.losses.evolution import diversity, quality
from kd_lightning.losses.gan import gradient_penalty, heuristic_g, least_squares_g, logistic_d, minimax_g
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.distiller import LastBatch
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.population import ChildAdam, Host, Individual, couples, fittest, lesson
from kd_lightning.methods.base.protocols import WhiteTeacher
from kd_lightning.methods.generators.evolution_monitor import EvolutionMonitor, warn_of_mixing
from kd_lightning.networks.generators.gan_blocks import from_pixels, to_pixels

MUTATIONS = {"heuristic": heuristic_g, "least_squares": least_squares_g, "minimax": minimax_g}
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
        child_adam: what a child gets of its fitter parent's optimiser, ``inherit``, ``zero`` (no momentum) or ``fresh``.
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
        self.watch = EvolutionMonitor([*self.mutations, *(["crossover"] if crossovers else [])])
        if penalty:
            warn_of_mixing(self.discriminator)

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
        host = Host(self.learner, opt_g.optimizer)
        if not self.population:
            self.population = [host.take("none")] * self.population_size
        part = math.ceil(len(batch.x) / self.d_steps)
        judged = max(math.ceil(len(batch.x) / self.population_size), self.eval_size)

        # Mutation, and evaluation of the mutants
        trial = self.latents(judged)
        mutants = []
        for parent in self.population:
            seed = self.latents(part)
            for mutation in self.mutations:
                seed = self.latents(part) if self.draws == "fresh" else seed
                mutants.append(self.mutant(host, opt_g, parent, mutation, seed))
        mutants = self.judged(host, mutants, trial, batch)

        # Crossover, and evaluation of the children
        children = [self.child(host, opt_g, pair, trial) for pair in couples(mutants, self.crossovers)]
        children = self.judged(host, children, self.latents(judged) if self.draws == "two" else trial, batch)

        # Selection
        self.population = fittest([*mutants, *children], self.population_size)
        best = self.population[0]
        host.put(best)
        self.watch.select(self.population)

        # Discriminator, on the images by which the survivors were judged
        made, y = self.replayed()
        real_parts, order = batch.x.chunk(self.d_steps), self.shuffled(len(made)).split(part)
        real_y = batch.y.chunk(self.d_steps) if self.conditional and batch.y is not None else [None] * self.d_steps
        for real, labels, pick in zip(real_parts, real_y, order, strict=False):
            fake = made[pick[: len(real)]]
            on_real = self.verdict(self.view(real), labels)
            on_made = self.verdict(self.view(fake), y if y is None else y[pick[: len(real)]])
            losses = {"d": logistic_d(on_real, on_made)}
            if self.penalty:
                losses["penalty"] = self.penalty * self.slope(real, fake, labels)
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

    def mutant(self, host: Host, opt: LightningOptimizer, parent: Individual, mutation: str, seed: Latents) -> Individual:
        """A parent after one step on a loss, with the images of ``seed``."""
        host.put(parent)
        with frozen(self.discriminator, in_eval=True):
            scores = self.verdict(self.view(self.made(seed)), *seed[1:])
            if mutation == "least_squares" and self.least_squares_on == "prob":
                scores = scores.sigmoid()
            opt.zero_grad()
            self.manual_backward(MUTATIONS[mutation](scores))
        if self.mutation_grad == "unit":
            unit_length(host.parameters)
        opt.step()
        return host.take(mutation)

    def child(
        self, host: Host, opt: LightningOptimizer, pair: tuple[Individual, Individual], trial: Latents
    ) -> Individual:
        """The fitter parent after ``cross_steps`` steps towards the better images of both, in the space of tanh."""
        host.put(pair[0])
        host.begin_child(self.child_adam)
        target = from_pixels(lesson(pair))
        for _ in range(self.cross_steps):
            self.update(opt, F.mse_loss(from_pixels(self.made(trial)).float(), target.float()))
        return host.take("crossover")

    def judged(self, host: Host, individuals: list[Individual], trial: Latents, real: Batch) -> list[Individual]:
        """The individuals with images, scores and fitness; every rank finds the same fitness."""
        found, fits = [], []
        for individual in individuals:
            latents = self.latents(len(trial[0])) if self.draws == "fresh" else trial
            host.put(individual)
            self.learner.eval()
            self.discriminator.eval()
            with torch.no_grad():
                images = self.made(latents)
                scores = self.verdict(images, *latents[1:]).float()
            fits.append(self.fit(scores, images, latents, real))
            self.learner.train()
            self.discriminator.train()
            found.append((individual, images, latents[1] if self.conditional else None, scores))
        values = collectives.mean(torch.stack(fits)).tolist() if fits else []
        return [
            Individual(each.weights, each.moments, each.operator, images, y, scores, value)
            for (each, images, y, scores), value in zip(found, values, strict=True)
        ]

    def fit(self, scores: Tensor, images: Tensor, latents: Latents, real: Batch) -> Tensor:
        """Fitness of a generator whose images have these scores (N,): a scalar."""
        if self.fitness == "logit":
            return scores.mean()
        with torch.enable_grad():
            on_real = self.verdict(real.x, real.y if self.conditional else None)
            loss = logistic_d(on_real, self.verdict(images, *latents[1:]))
            return quality(scores) + self.gamma * diversity(loss, self.discriminator.parameters())

    def slope(self, real: Tensor, fake: Tensor, y: Tensor | None) -> Tensor:
        """The gradient penalty between pairs of images, in the space of tanh."""
        share = torch.rand(len(real), 1, 1, 1, device=self.device, generator=self.rng)
        points = torch.lerp(from_pixels(fake), from_pixels(real), share).requires_grad_(True)
        return gradient_penalty(self.verdict(to_pixels(points), y), points)

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


def unit_length(parameters: Sequence[nn.Parameter]) -> None:
    """Scale all gradients together to length 1; gradients of 0 stay."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_div_(gradients, length.clamp(min=torch.finfo(length.dtype).tiny))


def check_sizes(mutations: Sequence[str], population: int, crossovers: int, draws: str) -> None:
    """Refuse settings that leave a crossover without its two parents.

    Raises:
        ConfigError: says which, and what to set.
    """
    unknown = [name for name in mutations if name not in MUTATIONS]
    if unknown or not mutations:
        raise ConfigError(f"method.mutations={list(mutations)}: expected one or more of {', '.join(MUTATIONS)}")
    if population < 1 or crossovers < 0:
        raise ConfigError(f"method.population={population}, method.crossovers={crossovers}: expected 1 or more, 0 or more")
    mutants = population * len(mutations)
    if crossovers > math.comb(mutants, 2):
        raise ConfigError(
            f"method.crossovers={crossovers}: a population of {population} with {len(mutations)} mutation(s) has "
            f"{mutants} mutant(s), of which there are {math.comb(mutants, 2)} pair(s): set method.population="
            f"{population + 1} or more, or method.crossovers={math.comb(mutants, 2)}"
        )
    if crossovers and draws == "fresh":
        raise ConfigError(
            "method.draws=fresh: a crossover compares two generators on the same latents: set method.draws=common, or "
            "method.crossovers=0"
        )
