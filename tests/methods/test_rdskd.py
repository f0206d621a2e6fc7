"""RDSKD's generator: pairs, the conflict of its losses, and the anchors of its increments."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import rdskd
from safetensors.torch import save_file
from torch import nn
from toy import STATISTICS, context, fit, generator, trained_teacher

from kd_lightning.errors import ConfigError
from kd_lightning.losses.image_prior import information_entropy, one_hot
from kd_lightning.methods.data_free.rdskd import RdskdGenerator
from kd_lightning.sources.frozen_generator import Generated, GeneratedLoader
from kd_lightning.teachers.white_box import FrozenTeacher


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The terms and the anchors after each round."""
    seen: list[dict[str, Any]] = []

    def record(self: RdskdGenerator, **terms: torch.Tensor) -> None:
        anchors = dict(zip(self.increment.names, self.increment.anchors.tolist(), strict=True))
        seen.append({k: v.item() for k, v in terms.items()} | {"anchors": anchors})

    monkeypatch.setattr(RdskdGenerator, "record", record)
    return seen


def small(**settings: Any) -> Any:
    make = rdskd(1e-3)
    make.keywords.update({"generator": generator(ngf=4), "batch_size": 8, "anchor_every": 120} | settings)
    return make


def test_anchors_move_in_the_second_round_of_each_block_over_epochs(
    teacher: nn.Module, rounds: list[dict[str, Any]]
) -> None:
    fit(small(), teacher, range(62), epochs=2)
    wanted = {"oh": 0.0, "ie": 0.0}
    for step, seen in enumerate(rounds):
        before = dict(wanted)
        if step in (1, 121):
            wanted = {k: seen[k] for k in wanted}
        assert seen["anchors"] == pytest.approx(wanted)
        increments = torch.tensor([seen[k] - before[k] for k in before])
        assert seen["loss"] == pytest.approx(float(increments.exp().sum()) + seen["ds"], rel=1e-4)
    assert len(rounds) == 124


def test_the_plain_sum_has_no_anchors(teacher: nn.Module, rounds: list[dict[str, Any]]) -> None:
    fit(small(aggregate="sum"), teacher, range(3))
    for seen in rounds:
        assert seen["loss"] == pytest.approx(seen["oh"] + seen["ie"] + seen["ds"], rel=1e-5)
        assert seen["anchors"] == {"oh": 0.0, "ie": 0.0}


def test_diversity_is_measured_on_standardised_pixels(teacher: nn.Module, rounds: list[dict[str, Any]]) -> None:
    method = fit(small(), teacher, range(1))
    assert method.seen is not None
    x1, x2 = (method.seen.images / STATISTICS["std"][0]).chunk(2)
    p1, p2 = method.seen.teacher.softmax(1).chunk(2)
    assert rounds[0]["ds"] == pytest.approx(float((p2 - p1).norm() / (x2 - x1).norm()), rel=1e-4)
    assert rounds[0]["oh"] == pytest.approx(float(one_hot(method.seen.teacher)))
    assert rounds[0]["ie"] == pytest.approx(float(information_entropy(method.seen.teacher)), abs=1e-6)


def test_one_forward_of_the_whole_batch_where_halves_would_do_and_where_they_would_not(teacher: nn.Module) -> None:
    torch.manual_seed(0)
    made, z = generator(), torch.randn(64, 16)
    with torch.no_grad():
        x = made(z)
        torch.testing.assert_close(teacher(x), torch.cat([teacher(half) for half in x.chunk(2)]))
        apart = torch.cat([made(half) for half in z.chunk(2)])
    assert (apart - x).abs().max() > 0.01, "batch norm in training mode sees the whole batch"
    sizes: dict[str, list[int]] = {"generator": [], "teacher": []}
    hooks = [
        net.register_forward_pre_hook(lambda _module, args, name=name: sizes[name].append(len(args[0])))
        for name, net in {"generator": made, "teacher": teacher}.items()
    ]
    fit(small(generator=made), teacher, range(2))
    for hook in hooks:
        hook.remove()
    assert sizes == {"generator": [8, 8], "teacher": [8, 8]}


def test_an_odd_batch_has_no_halves(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="must be even, got 7"):
        fit(small(batch_size=7), teacher, range(1))


def loader(**changes: Any) -> GeneratedLoader:
    torch.manual_seed(3)
    return GeneratedLoader(generator().eval().requires_grad_(False), 6, (8, 16), context(**changes))


def test_generated_images_are_fresh_in_every_batch_epoch_rank_and_seed() -> None:
    batches = [batch.x for batch in loader()]
    later = loader()
    later.set_epoch(1)
    batches += [next(iter(other)).x for other in (later, loader(rank=1), loader(order_seed=1))]
    assert len({batch.sum().item() for batch in batches}) == 9
    assert not any(batch.requires_grad for batch in batches)
    assert later.notes["images_synthesised"] == 7 * 8


def test_generated_images_are_labelled_by_the_teacher_for_a_method_that_wants_labels(teacher: nn.Module) -> None:
    asked = FrozenTeacher(teacher)
    plain = next(iter(loader(teacher=asked)))
    assert (plain.y, plain.t, asked.asked) == (None, None, 0)
    told = next(iter(loader(teacher=asked, needs={"source.labels"})))
    assert torch.equal(told.x, plain.x)
    assert torch.equal(told.y, teacher(told.x).argmax(1))
    assert torch.equal(told.t, teacher(told.x))  # handed on, so that it is not asked again
    assert asked.asked == 8
    made = generator()
    save_file(made.state_dict(), file := str(Path(tempfile.mkdtemp()) / "generator.safetensors"))
    source = Generated(generator=made, weights=file, rounds=1, batch_size=8, latent=16)
    with pytest.raises(ConfigError, match=r"the teacher labels the images, but teacher=none"):
        source.prepare(context(needs={"source.labels"}))


def test_a_generator_may_end_in_a_batch_norm() -> None:
    made = generator(tail="bn")  # in training mode, so that its images have the mean 0 and the deviation 1 of its tail
    low, high = next(iter(GeneratedLoader(made.requires_grad_(False), 1, (8, 16), context()))).x.aminmax()
    assert low < -0.01 or high > 1.01


@pytest.mark.parametrize("stop", [1, 4])
def test_generated_images_go_on_where_they_stopped(stop: int) -> None:
    whole, first, second = loader(), loader(), loader()
    for each in (whole, first, second):
        each.set_epoch(2)
    wanted = [batch.x for batch in whole]
    drawn = iter(first)
    for _ in range(stop):
        next(drawn)
    second.load_state_dict(first.state_dict())
    rest = [batch.x for batch in second]
    assert len(rest) == 6 - stop
    assert all(torch.equal(a, b) for a, b in zip(rest, wanted[stop:], strict=True))
    assert second.notes["images_synthesised"] == whole.notes["images_synthesised"] == 18 * 8


def test_the_source_reads_weights_and_leaves_the_generator_as_it_is(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    trained = generator()
    trained(torch.randn(64, 16))
    save_file(trained.state_dict(), tmp_path / "generator.safetensors")
    fresh = generator()
    source = Generated(
        generator=fresh, weights=str(tmp_path / "generator.safetensors"), rounds=2, batch_size=4, latent=16
    )
    batches = list(source.prepare(context()))
    assert [tuple(batch.x.shape) for batch in batches] == [(4, 1, 8, 8)] * 2
    assert all(batch.y is None and batch.t is None for batch in batches)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_images_are_drawn_in_the_precision_and_layout_of_the_fit(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    save_file(generator().state_dict(), tmp_path / "generator.safetensors")
    made = {}
    for precision, memory_format in {"32-true": "contiguous", "bf16-mixed": "channels_last"}.items():
        fresh = generator()
        inside: list[torch.Tensor] = []
        fresh.tail.register_forward_pre_hook(lambda _module, args, inside=inside: inside.append(args[0]))
        source = Generated(
            generator=fresh, weights=str(tmp_path / "generator.safetensors"), rounds=1, batch_size=4, latent=16
        )
        (batch,) = source.prepare(context(precision=precision, memory_format=memory_format))
        assert inside[0].dtype == (torch.float32 if precision == "32-true" else torch.bfloat16)
        wanted = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
        assert fresh.body[1].weight.is_contiguous(memory_format=wanted)  # type: ignore[union-attr,operator]
        assert batch.x.dtype == torch.float32
        made[precision] = batch.x
    assert not torch.equal(*made.values())
    torch.testing.assert_close(*made.values(), rtol=0, atol=0.1)


def test_a_run_counts_the_images_of_both_phases(tiny: Any) -> None:
    generator_phase = ("rdskd.source.rounds=3", "rdskd.trainer.max_epochs=1", "rdskd.method.batch_size=8")
    student_phase = ("source.rounds=4", "source.batch_size=16", "trainer.max_epochs=2")
    small = ("rdskd.method.latent=4", "rdskd.method.generator.ngf=4")
    result = tiny("method=rdskd", *generator_phase, *student_phase, *small)
    assert result["status"] == "ok"
    assert result["cost"]["images_synthesised"] == 3 * 8 + 2 * 4 * 16
    assert {"generator", "student"} < set(result["cost"]["seconds"])
