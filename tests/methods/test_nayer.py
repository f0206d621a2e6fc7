"""NAYER: constant embeddings, noisy layers drawn for every batch, a generator that is drawn anew now and then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import nayer
from conftest import composed
from safetensors.torch import save_file
from test_rounds import Costs, flops, state
from torch import Tensor, nn
from torch.nn import functional as F
from toy import CLASSES, fit, generator, network, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.errors import ConfigError
from kd_lightning.losses.adversarial import masked_kl
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.methods.data_free.nayer import Nayer, orthonormal, read_embeddings

B = 64


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


@pytest.mark.parametrize(
    ("settings", "rounds", "order"),
    [
        ({"warmup": 0}, 11, "gssssgssssg"),
        ({"warmup": 1}, 11, "ggg--gssssg"),  # an epoch of warm-up is as long as the others
        ({"warmup": 2, "warmup_loops": 6}, 20, "gggggggggggggsssssgs"),
        ({"warmup": 0, "g_loops": 2}, 8, "ggssssgg"),
    ],
)
def test_the_order_of_a_fit(
    settings: dict[str, Any], rounds: int, order: str, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[int, str] = {}
    for name, letter in (("synthesise", "g"), ("distil", "s")):
        action = getattr(Nayer, name)

        def noting(self: Nayer, action: Any = action, letter: str = letter) -> Any:
            done[self.rounds_done] = letter
            return action(self)

        monkeypatch.setattr(Nayer, name, noting)
    method = fit(nayer(1e-2, **settings), teacher, range(rounds))
    assert "".join(done.get(n, "-") for n in range(rounds)) == order
    assert method.student_updates(rounds) == 5 * order.count("s")
    assert method.images_made == len(method.pool) == B * order.count("g")  # type: ignore[arg-type]


def test_an_epoch_is_as_long_as_its_settings_say(teacher: nn.Module) -> None:
    def length(**settings: Any) -> int | None:
        return fit(nayer(1e-2, **settings), teacher, range(0)).rounds_an_epoch()

    assert length(g_loops=2, kd_steps=40, per_batch=10, warmup=1) == 6
    assert length(g_loops=2, kd_steps=40, per_batch=10, warmup=1, warmup_loops=8) == 8
    assert length(g_loops=2, kd_steps=40, per_batch=10, warmup=0, warmup_loops=8) == 6


def test_a_noisy_layer_is_a_linear_map_that_makes_one_image_of_each_class(teacher: nn.Module) -> None:
    method = fit(nayer(1e-2), teacher, range(0))
    assert isinstance(method, Nayer)
    assert isinstance(method.generator, nn.Module)
    assert method.runs == B // CLASSES
    weight, bias = torch.randn(3, 8, 16), torch.randn(3, 1, 16)
    norm = nn.BatchNorm1d(8)  # over the classes
    embedded = norm(method.embedding)
    hidden = []
    for one, other in zip(weight, bias, strict=True):
        layer = nn.Linear(8, 16)
        layer.weight.data, layer.bias.data = one.T, other[0]
        hidden += list(layer(embedded))
    wanted = method.generator(torch.stack(hidden))
    assert torch.allclose(method.images(weight, bias), wanted, atol=1e-5)


def watched(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, rounds: int, lr_g: float = 5e-3, **settings: Any
) -> list[dict[str, Any]]:
    """Of each step on images: what they were made of, their loss by hand, and what the method said of the last."""
    steps: list[dict[str, Any]] = []
    images, record = Nayer.images, Nayer.record
    y = torch.arange(CLASSES).repeat(B // CLASSES)

    def making(self: Nayer, weight: Tensor, bias: Tensor) -> Tensor:
        x = images(self, weight, bias)
        with torch.no_grad(), BatchNormTap(teacher) as tap:
            t = teacher(x)
            past = self.mixture.average
            losses = {
                "bn": 10 * batch_norm_statistics(tap.statistics, tap.layers, ema=past, momentum=0.9),
                "oh": 0.5 * F.cross_entropy(t, y),
                "adv": 1.33 * masked_kl(self.student(x), t),
            }
        moments = len(self.opts()[1].optimizer.state)
        steps.append({"round": self.rounds_done, "weight": weight.detach().clone(), "bias": bias.detach().clone()})
        steps[-1] |= {"x": x.detach(), "losses": losses, "moments": moments, "student": state(self.student)}
        steps[-1] |= {"generator": state(self.generator), "statistics": tap.statistics, "pool": self.pool}
        steps[-1] |= {"project": self.generator.project.weight.detach().clone()}  # type: ignore[union-attr]
        steps[-1] |= {"tracked": int(self.generator.body[0].num_batches_tracked)}  # type: ignore[union-attr,index]
        return x

    def recording(self: Nayer, **terms: Tensor) -> None:
        if "kd" not in terms:
            steps[-1]["said"] = {name: term.item() for name, term in terms.items()}
        record(self, **terms)

    monkeypatch.setattr(Nayer, "images", making)
    monkeypatch.setattr(Nayer, "record", recording)
    fit(nayer(lr_g, **settings), teacher, range(rounds), batch_norm=True)
    return steps


def test_the_losses_of_a_step(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """In warm-up without the game; afterwards with it; from the second batch on the statistics are a mixture."""
    steps = watched(teacher, monkeypatch, 11, g_steps=3)
    last = [step for step in steps if "said" in step]
    assert [step["round"] for step in last] == [0, 1, 2, 5, 10]
    for step in last:
        wanted = {name: loss.item() for name, loss in step["losses"].items()}
        if step["round"] < 5:
            del wanted["adv"]
        assert step["said"] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_the_images_of_the_lowest_loss_join_the_pool(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = watched(teacher, monkeypatch, 1, g_steps=6, bn=0.0)
    totals = [step["losses"]["oh"].item() for step in steps]
    best = steps[min(range(6), key=totals.__getitem__)]["x"]
    assert torch.equal(steps[0]["pool"].rows, (best.clamp(0, 1) * 255).round().byte())


def test_every_batch_has_new_noisy_layers_and_an_optimiser_without_a_past(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = watched(teacher, monkeypatch, 3, g_steps=2)
    first, second = steps[0], steps[2]
    for step in (first, second):
        assert step["moments"] == 0
        assert step["weight"].std().item() == pytest.approx(1, rel=0.1)
        assert not step["bias"].any()
    assert (first["weight"] - second["weight"]).std().item() == pytest.approx(2**0.5, rel=0.1)
    # within a batch they learn beside the generator, while the student stands still
    assert steps[1]["moments"] > 0
    assert not torch.equal(steps[1]["weight"], first["weight"])
    assert steps[1]["bias"].any()
    assert steps[1]["generator"] != first["generator"]
    assert len({step["student"] for step in steps}) == 1


def test_the_generator_lives_for_some_epochs(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of five rounds, in which nothing is learned: only a new draw changes weights."""
    steps = watched(teacher, monkeypatch, 21, lr_g=0.0, g_steps=1, warmup=0, g_life=2)
    project = {step["round"]: step["project"] for step in steps}
    assert [torch.equal(project[n], project[n + 5]) for n in (0, 5, 10, 15)] == [True, False, True, False]
    assert [step["tracked"] for step in steps] == [1, 2, 1, 2, 1]
    new = generator(tail="sigmoid", conv_bias=False).project.weight.std().item()
    assert project[10].std().item() == pytest.approx(new, rel=0.1)  # as PyTorch draws them


def test_schedules_wait_for_the_student(teacher: nn.Module) -> None:
    halving = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    method = fit(nayer(5e-3, warmup=2, scheduler=halving), teacher, range(5), epochs=4)
    assert method.optimizers()[0].param_groups[0]["lr"] == pytest.approx(0.02 / 4)  # type: ignore[index]


def test_no_forward_or_backward_pass_too_many(teacher: nn.Module) -> None:
    make = nayer(5e-3, warmup=0, g_steps=3)
    g = Costs(generator(tail="sigmoid", conv_bias=False), torch.randn(B, 16).requires_grad_())
    t = Costs(trained_teacher(batch_norm=True), torch.rand(B, 1, 8, 8))
    s = Costs(network((8, 16)), torch.rand(B, 1, 8, 8))
    noisy = 3 * 2 * B * 8 * 16  # forward, and gradients of weights and embeddings
    assert flops(lambda: fit(make, teacher, range(1))) == 3 * (g.train + noisy + t.through + s.through)


def test_an_image_that_is_not_augmented_is_answered_once(teacher: nn.Module) -> None:
    method = fit(nayer(1e-2, warmup=0, g_loops=2), teacher, range(12))
    assert isinstance(method, Nayer)
    x, t = method.lesson(32)
    assert torch.equal(t, method.white(x))
    assert len(method.answers) == len(method.pool)
    rows = (method.pool.rows.float() / 255).flatten(1)
    assert all(any(torch.equal(one, row) for row in rows) for one in x.flatten(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method.white), "__call__", lambda *_: pytest.fail("asked again"))
        method.lesson(32)


def test_an_augmented_image_is_answered_as_the_student_sees_it(teacher: nn.Module) -> None:
    method = fit(nayer(1e-2, warmup=0, augment=[lambda x, rng: x.flip(3)]), teacher, range(4))
    assert isinstance(method, Nayer)
    x, t = method.lesson(32)
    assert torch.equal(t, method.white(x))
    assert not len(method.answers)


def test_embeddings_are_equally_far_apart_and_always_the_same() -> None:
    rows = orthonormal(10, 512)
    assert torch.allclose(rows @ rows.T, torch.eye(10), atol=1e-5)
    assert torch.equal(rows, orthonormal(10, 512))
    assert orthonormal(6, 4).shape == (6, 4)


def test_embeddings_of_the_users_own(teacher: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "classes.safetensors"
    rows = torch.randn(CLASSES, 12)
    save_file({"embedding": rows}, file)
    method = fit(nayer(1e-2, embeddings=str(file)), teacher, range(1))
    assert torch.equal(method.embedding, rows)  # type: ignore[arg-type]
    assert method.findings() == {"embeddings": "classes.safetensors"}
    assert fit(nayer(1e-2), teacher, range(0)).findings() == {"embeddings": "orthonormal"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ({"other": torch.zeros(4, 3)}, "the file holds none"),
        ({"embedding": torch.zeros(5, 3)}, r"found \(5, 3\)"),
        ({"embedding": torch.zeros(4)}, r"found \(4,\)"),
        ({"embedding": torch.full((4, 3), torch.nan)}, "not finite"),
    ],
)
def test_embeddings_that_do_not_fit(content: dict[str, Tensor] | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.safetensors"
    if content:
        save_file(content, file)
    with pytest.raises(
        ConfigError, match=rf"method.embeddings=.*expected a finite tensor 'embedding' \(4, D\).*{said}"
    ):
        read_embeddings(str(file), 4)


def test_settings_that_do_not_fit(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="batch_size=3 is less than one image of each of 4 classes"):
        fit(nayer(1e-2, batch_size=3), teacher, range(1))
    with pytest.raises(ValueError, match="per_batch must divide kd_steps=20, got 3"):
        fit(nayer(1e-2, per_batch=3), teacher, range(1))


@pytest.mark.slow
def test_a_fit_that_ends_with_the_warm_up_is_refused() -> None:
    (fault,) = faults(composed("method=nayer", "trainer.max_epochs=2"))
    assert fault.startswith("trainer.max_epochs=2: the student learns nothing in the first 2 epochs (method.warmup): ")
    assert fault.endswith("set trainer.max_epochs=3 or more, or method.warmup=1 or less")
    assert not faults(composed("method=nayer", "trainer.max_epochs=3"))
    assert not faults(composed("method=nayer", "trainer.max_epochs=2", "method.warmup=1"))
    assert not faults(composed("method=nayer", "debug=smoke"))
