"""Generators that are varied, crossed and selected."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from bars import fitted
from torch import Tensor, nn
from toy import CLASSES, adam, patterns

from kd_lightning.core.tasks import Classification
from kd_lightning.data.batches import Batch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.errors import ConfigError
from kd_lightning.losses.gan import heuristic_g, logistic_d
from kd_lightning.methods.base.population import Host, Individual, couples, fittest, lesson
from kd_lightning.methods.generators.ce_gan import CeGan
from kd_lightning.methods.generators.evolution_monitor import EvolutionMonitor
from kd_lightning.methods.generators.mutations import unit_length
from kd_lightning.networks.generators import biggan
from kd_lightning.networks.generators.gan_blocks import from_pixels
from kd_lightning.networks.generators.plain_gans import DcganDiscriminator, LinearCritic, LinearGenerator

LATENT, B = 8, 24


def evolving(*, lr: float = 1e-3, seed: int = 0, **settings: Any) -> CeGan:
    torch.manual_seed(seed)
    nets: dict[str, Any] = {
        "generator": LinearGenerator(latent=LATENT, widths=(32,)),
        "discriminator": LinearCritic(widths=(32,)),
    }
    optimizer = partial(adam, lr=lr, betas=(0.5, 0.999))
    return CeGan(
        **{**nets, "latent": LATENT, "eval_size": 32, "d_steps": 3, "log_every": 1, **settings},
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(CLASSES),
        optimizer_d=optimizer,
        optimizer_g=optimizer,
    )


def real(rounds: int = 4, batch: int = B) -> TensorLoader:
    images, labels = patterns(rounds * batch, seed=3)
    return TensorLoader((images * 255).byte(), labels, batch_size=batch, shuffle=True)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def host(lr: float = 1e-3, momentum: float = 0.0) -> Host:
    """A generator that has taken two steps, and its optimiser."""
    torch.manual_seed(0)
    net = LinearGenerator(latent=LATENT, widths=(16,))
    opt = (
        torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
        if momentum
        else torch.optim.Adam(net.parameters(), lr)
    )
    for _ in range(2):
        opt.zero_grad()
        net(torch.randn(4, LATENT)).sum().backward()
        opt.step()
    return Host(net, opt)


def individual(fitness: float, operator: str = "minimax", **parts: Any) -> Individual:
    return Individual({}, [], operator, fitness=fitness, **parts)


# The population


def test_what_is_taken_out_is_not_written_to_by_later_steps() -> None:
    at = host()
    kept = at.take("heuristic")
    weights, moments = state(at.net), [dict(each) for each in kept.moments]
    moments = [{k: v.clone() for k, v in each.items()} for each in moments]
    at.optimizer.zero_grad()
    at.net(torch.ones(2, LATENT)).sum().backward()
    at.optimizer.step()
    assert not same(weights, state(at.net))
    assert same(weights, kept.weights)
    for before, after in zip(moments, kept.moments, strict=True):
        assert same(before, after)


def test_whoever_is_put_back_goes_on_as_if_it_had_never_left() -> None:
    """Its optimiser's state comes with its weights."""

    def step(at: Host) -> dict[str, Tensor]:
        at.optimizer.zero_grad()
        at.net(torch.ones(2, LATENT)).sum().backward()
        at.optimizer.step()
        return state(at.net)

    at = host()
    kept = at.take("heuristic")
    wanted = step(at)
    step(at)
    at.put(kept)
    assert same(step(at), wanted)
    fresh = host(lr=1e-3)  # another optimiser, as after a resume
    fresh.optimizer.state.clear()
    fresh.put(Individual.restored(kept.saved(), torch.device("cpu")))
    assert same(step(fresh), wanted)


def test_the_networks_own_tensors_are_written() -> None:
    at = host()
    parameters = list(at.net.parameters())
    at.put(at.take("heuristic"))
    assert all(p is q for p, q in zip(parameters, at.net.parameters(), strict=True))


@pytest.mark.parametrize(("how", "moves"), [("inherit", True), ("zero", False), ("fresh", False)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_moves_a_child_that_has_nothing_to_learn(how: Any, moves: bool, momentum: float) -> None:
    at = host(momentum=momentum)
    before = state(at.net)
    at.begin_child(how)
    at.optimizer.zero_grad()
    (0 * at.net(torch.ones(2, LATENT)).sum()).backward()
    at.optimizer.step()
    assert same(before, state(at.net)) != moves


def test_pairs_are_those_of_the_highest_sum_with_the_fitter_first() -> None:
    a, b, c = individual(1.0), individual(3.0), individual(2.0)
    assert [(x.fitness, y.fitness) for x, y in couples([a, b, c], 2)] == [(3.0, 2.0), (3.0, 1.0)]
    assert couples([a], 1) == []


def test_the_fittest_survive_in_order() -> None:
    everyone = [individual(f) for f in (0.5, -2.0, 3.0, 1.0)]
    assert [each.fitness for each in fittest(everyone, 2)] == [3.0, 1.0]


def test_of_equal_fitness_the_later_survives() -> None:
    everyone = [individual(1.0, "heuristic"), individual(1.0, "crossover")]
    assert fittest(everyone, 1)[0].operator == "crossover"


def test_a_lesson_scores_no_less_than_either_parent() -> None:
    images, scores = torch.rand(2, 50, 1, 2, 2), torch.randn(2, 50)
    pair = [individual(0.0, images=x, scores=s) for x, s in zip(images, scores, strict=True)]
    taught = lesson(pair)
    assert all(any(torch.equal(taught[i], x[i]) for x in images) for i in range(50))
    assert float(scores.max(0).values.mean()) >= float(scores.mean(1).max())


def test_gradients_of_unit_length() -> None:
    net = nn.Linear(5, 3)
    (1e-4 * net(torch.ones(2, 5)).square().sum()).backward()
    before = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    unit_length(list(net.parameters()))
    after = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(after, before / before.norm())
    net.zero_grad()
    (0 * net(torch.ones(2, 5)).sum()).backward()
    unit_length(list(net.parameters()))
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


# A generation


class Spy:
    """What a method did in a fit, phase by phase."""

    def __init__(self, method: CeGan) -> None:
        self.method, self.log = method, list[tuple[str, Any]]()
        for name in ("mutant", "child", "judged", "look"):
            setattr(method, name, partial(self.seen, name, getattr(method, name)))

    def seen(self, name: str, call: Any, *args: Any) -> Any:
        d = self.method.discriminator
        before = state(d), d.training
        result = call(*args)
        if name != "look":
            assert same(before[0], state(d)), f"{name} has changed the discriminator"
            assert not d.training, "scores of an image depend on the others"
        self.log.append((name, result))
        return result

    def order(self) -> str:
        return " ".join(f"{name}:{r}" if isinstance(r, str) else name for name, r in self.log if name != "look")


def test_a_generation_mutates_judges_crosses_and_judges() -> None:
    method = evolving(population=1, crossovers=2, show_every=1000)
    spy = Spy(method)
    fitted(method, real(rounds=1))
    mutations = " judged ".join(f"mutant:{m}" for m in ("heuristic", "least_squares", "minimax"))
    assert spy.order() == f"{mutations} judged child:crossover judged child:crossover judged"
    # three losses on 8 images, and five judged and two taught on 32
    assert method.images_made == 3 * 8 + 5 * 32 + 2 * 32


def test_every_mutant_starts_from_its_parent_with_the_same_latents() -> None:
    method = evolving(mutations=["heuristic", "heuristic", "least_squares"], crossovers=0)
    spy = Spy(method)
    fitted(method, real(rounds=1))
    first, second, third = (each for name, each in spy.log if name == "judged")
    assert same(first.weights, second.weights)
    assert not same(first.weights, third.weights)
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("draws", ["common", "two", "fresh"])
def test_which_latents_are_shared(draws: Any) -> None:
    method = evolving(draws=draws, crossovers=0 if draws == "fresh" else 1, lr=0.0)
    spy = Spy(method)
    fitted(method, real(rounds=1))
    images = [each.images for name, each in spy.log if name == "judged"]  # of one and the same generator: lr=0
    assert torch.equal(images[0], images[1]) == (draws != "fresh")
    if draws != "fresh":
        assert torch.equal(images[0], images[3]) == (draws == "common")


def test_survivors_are_the_fittest_and_the_discriminator_sees_their_images() -> None:
    method = evolving(population=2, crossovers=1)
    spy, seen = Spy(method), list[Tensor]()
    method.discriminator.register_forward_pre_hook(
        lambda net, args: seen.append(args[0].detach()) if net.training else None
    )
    fitted(method, real(rounds=1))
    judged = [each for name, each in spy.log if name == "judged"]
    values = sorted((float(each.fitness) for each in judged), reverse=True)
    assert [each.fitness for each in method.population] == pytest.approx(values[:2])
    assert same(state(method.generator), method.population[0].weights)
    cached = torch.cat([each.images for each in method.population if each.images is not None])
    assert len(seen) == 3
    for x in seen:
        real_x, made_x, _ = x.split([8, 8, 8])
        assert all((cached == row).flatten(1).all(1).any() for row in made_x)
        assert not any((cached == row).flatten(1).all(1).any() for row in real_x)
    made = torch.cat([x[8:16] for x in seen])
    assert len({tuple(row.flatten().tolist()) for row in made}) == len(made), "an image was replayed twice"


def test_a_child_imitates_the_better_image_of_every_latent() -> None:
    """Its loss before the step is what it costs to be the fitter parent, in the space of tanh."""
    method = evolving(crossovers=1, lr=1e-2)
    spy, losses = Spy(method), list[float]()
    update = method.update

    def spied(opt: Any, loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        update(opt, loss)

    method.update = spied  # type: ignore[method-assign]
    fitted(method, real(rounds=1))
    mutants = [each for name, each in spy.log if name == "judged"][:3]
    a, b = sorted(mutants, key=lambda each: float(each.fitness))[:0:-1]
    better = b.scores >= a.scores
    distance = (from_pixels(a.images) - from_pixels(b.images)).square().flatten(1).mean(1)
    assert better.any()
    assert losses[0] == pytest.approx(float((distance * better).mean()), rel=1e-4)


@pytest.mark.parametrize(("child_adam", "moves"), [("inherit", True), ("zero", False), ("fresh", False)])
def test_a_child_of_equal_parents(child_adam: Any, moves: bool) -> None:
    """There is nothing to learn from them; what moves it is the momentum that it inherits."""
    method = evolving(mutations=["heuristic", "heuristic"], child_adam=child_adam)
    spy = Spy(method)
    fitted(method, real(rounds=2))
    judged = [each for name, each in spy.log if name == "judged"]
    mutant, child = judged[3], judged[5]
    assert child.operator == "crossover"
    assert same(mutant.weights, child.weights) != moves


def test_the_optimisers_state_survives_with_the_weights() -> None:
    method = evolving(mutations=["heuristic"], crossovers=0)
    fitted(method, real(rounds=4))
    assert {float(each["step"]) for each in method.population[0].moments} == {4.0}


def test_one_loss_and_no_crossover_are_a_gan_that_replays_the_judged_images() -> None:
    """Beside a loop that knows nothing of evolution."""
    method = evolving(mutations=["heuristic"], crossovers=0, mutation_grad="raw", penalty=0.0)
    torch.manual_seed(0)
    g, d = LinearGenerator(latent=LATENT, widths=(32,)), LinearCritic(widths=(32,))
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (g, d))
    rng = torch.Generator()
    drawn = partial(torch.rand, generator=rng)
    fed: list[Tensor] = []
    step = method.training_step

    def watched(batch: Batch, batch_idx: int) -> None:
        if not fed:
            rng.set_state(method.rng.get_state())
        fed.append(batch.x)
        step(batch, batch_idx)

    method.training_step = watched  # type: ignore[method-assign]
    fitted(method, real(rounds=3))
    for x in fed:
        trial, seed = 2 * drawn(32, LATENT) - 1, 2 * drawn(8, LATENT) - 1
        opt_g.zero_grad()
        heuristic_g(d(g(seed))).backward()
        opt_g.step()
        made = g(trial).detach()
        order = torch.randperm(32, generator=rng).split(8)
        for part, pick in zip(x.chunk(3), order, strict=False):
            opt_d.zero_grad()
            logistic_d(d(part), d(made[pick])).backward()
            opt_d.step()
    for ours, theirs in ((method.generator, g), (method.discriminator, d)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_raw_gradients_of_least_squares_are_the_largest_and_unit_ones_are_not() -> None:
    """The step of plain gradient descent shows the length of the gradient."""

    def lengths(mutation_grad: str) -> list[float]:
        method = evolving(mutation_grad=mutation_grad, crossovers=0)
        method.make_optimizer_g = partial(torch.optim.SGD, lr=1.0)
        with torch.no_grad():
            list(method.discriminator.parameters())[-1].fill_(-8.0)  # it is sure
        before, spy = state(method.generator), Spy(method)
        fitted(method, real(rounds=1))
        moved = [each.weights for name, each in spy.log if name == "judged"]
        return [math.sqrt(sum(float((w[k] - before[k]).square().sum()) for k in w)) for w in moved]

    raw, unit = lengths("raw"), lengths("unit")
    assert raw[1] > 5 * raw[0] > 50 * raw[2]
    assert unit == pytest.approx([1.0, 1.0, 1.0], rel=1e-3)


def test_least_squares_on_probabilities_vanishes_where_the_discriminator_is_sure() -> None:
    for on, moves in (("logit", True), ("prob", False)):
        method = evolving(
            mutations=["least_squares"], crossovers=0, mutation_grad="raw", least_squares_on=on, penalty=0.0
        )
        method.make_optimizer_g = partial(torch.optim.SGD, lr=1.0)
        with torch.no_grad():
            list(method.discriminator.parameters())[-1].fill_(-40.0)
        before = state(method.generator)
        fitted(method, real(rounds=1))
        largest = max(float((v - before[k]).abs().max()) for k, v in method.generator.state_dict().items())
        assert (largest > 1e-3) == moves


def test_gamma_makes_diversity_count() -> None:
    fits = {}
    for gamma in (0.0, 0.5):
        method = evolving(fitness="quality_diversity", gamma=gamma, crossovers=0, lr=0.0)
        fitted(method, real(rounds=1))
        fits[gamma] = float(method.population[0].fitness)
    scores = method.population[0].scores
    assert scores is not None
    assert fits[0.0] == pytest.approx(float(scores.sigmoid().mean()), rel=1e-5)
    assert abs(fits[0.5] - fits[0.0]) > 1e-2
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.discriminator.parameters())


@pytest.mark.parametrize("norm", [False, True])
def test_images_are_scored_one_by_one(norm: bool) -> None:
    """Also by a discriminator with batch norm, and its statistics stand still while generators are judged."""
    critic: nn.Module = LinearCritic(widths=(32,))
    if norm:
        critic = DcganDiscriminator(channels=1, size=8, ndf=4, last=2, norm="batch")
    method = evolving(discriminator=critic, penalty=0.0)
    spy = Spy(method)  # fails where statistics change
    fitted(method, real(rounds=1))
    assert any(name == "judged" for name, _ in spy.log)


def test_any_generator_can_be_evolved() -> None:
    """A conditional one with batch norm, beside a discriminator of the label with spectral norm."""
    small: dict[str, Any] = {"num_classes": CLASSES, "channels": 1, "size": 8}
    method = evolving(
        generator=biggan.BigGanGenerator(latent=LATENT, widths=8, **small),
        discriminator=biggan.BigGanDiscriminator(widths=8, final=4, **small),
        conditional=True,
        population=2,
        ema=0.5,
        fitness="quality_diversity",
        show_every=1,
    )
    before = state(method.generator)
    fitted(method, real(rounds=2))
    assert not same(before, state(method.generator))
    assert method.seen is not None
    labels = method.population[0].labels
    assert labels is not None
    assert torch.equal(method.seen.teacher.argmax(1), labels)
    assert CeGan.needs(conditional=True) == {"source.images", "source.labels", "task.classification"}
    assert CeGan.needs() == {"source.images"}


# What is told


def test_counts_of_operators_are_in_the_report() -> None:
    method = evolving(population=2, crossovers=1)
    fitted(method, real(rounds=4))
    counts = method.findings()
    assert list(counts) == ["chosen/heuristic", "chosen/least_squares", "chosen/minimax", "chosen/crossover"]
    assert sum(counts.values()) == 2 * 4
    shares = [v for k, v in method.latest.items() if k.startswith("train/chosen_")]
    assert sum(shares) == pytest.approx(1.0)


def chosen(*operators: str) -> EvolutionMonitor:
    watch = EvolutionMonitor(["heuristic", "least_squares", "crossover"], least=2)
    watch.select([individual(0.0, name) for name in operators])
    return watch


def test_it_is_said_that_only_one_operator_was_chosen() -> None:
    with pytest.warns(UserWarning, match=r"all 3 survivors were made by crossover.*method.child_adam=zero"):
        chosen("crossover", "crossover", "crossover").tell_choice()
    with pytest.warns(UserWarning, match=r"all 2 survivors were made by least_squares.*method.mutation_grad=unit"):
        chosen("least_squares", "least_squares").tell_choice()


def test_and_not_where_two_were_or_there_is_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen("crossover", "heuristic").tell_choice()
        chosen().tell_choice()
        chosen("crossover").tell_choice()  # too few to say
        fitted(evolving(mutations=["minimax"], crossovers=0), real(rounds=2))


class Sure(LinearCritic):
    """Knows real images by a bright pixel in their corner."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 + 100 * (x[:, 0, 0, 0] - 0.99)


def test_a_discriminator_that_wins_everything_is_said_once() -> None:
    images = torch.full((48, 1, 8, 8), 255, dtype=torch.uint8)
    loader = TensorLoader(images, torch.zeros(48, dtype=torch.long), batch_size=B, shuffle=True)
    method = evolving(discriminator=Sure(widths=(8,)), mutations=["heuristic"], crossovers=0, lr=0.0, penalty=0.0)
    with pytest.warns(UserWarning, match="right about every one of 96 images in epoch 1") as told:
        fitted(method, loader, epochs=3)
    assert len(told) == 1


def test_one_that_errs_once_in_an_epoch_is_not() -> None:
    watch = EvolutionMonitor(["heuristic"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.tell_errors(0)  # nothing seen
        watch.count_errors(torch.tensor([5.0, 5.0]), torch.tensor([-5.0, 0.1]))
        watch.tell_errors(1)
    watch.count_errors(torch.tensor([5.0]), torch.tensor([-5.0]))
    with pytest.warns(UserWarning, match="right about every one of 2 images in epoch 2"):
        watch.tell_errors(2)


def test_a_gradient_penalty_under_batch_norm_is_said() -> None:
    critic = DcganDiscriminator(channels=1, size=8, ndf=4, last=2, norm="batch")
    with pytest.warns(UserWarning, match=r"set method.discriminator.norm=none"):
        evolving(discriminator=critic)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mutations": ["heuristic"]}, r"method.crossovers=1: a population of 1 .* set method.population=2 or more"),
        ({"crossovers": 4}, r"3 mutant\(s\), of which there are 3 pair\(s\)"),
        ({"mutations": ["wasserstein"]}, r"expected one or more of heuristic, least_squares, minimax"),
        ({"mutations": []}, r"expected one or more"),
        ({"population": 0}, r"expected 1 or more"),
        ({"draws": "fresh"}, r"set method.draws=common"),
    ],
)
def test_settings_that_leave_a_crossover_without_parents(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evolving(**settings)
    with pytest.raises(ConfigError, match=said):
        CeGan.needs(**settings)
