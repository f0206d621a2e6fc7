"""Two ranks: equal weights, noise of their own, and with common losses what one rank makes of the whole batch."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import DAFL, FORKS, PATIENCE, TINY, composed, composition, wait_until
from doors import Fake, asking
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent / "methods"))
from bars import bars
from cases import RANKS, Case
from toy import CLASSES, context, generator, network, patterns, sgd

from kd_lightning.config import ranks, resolvers
from kd_lightning.config.check import faults
from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.batches import VicinalBatch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.data.streams import StreamsLoader
from kd_lightning.distributed import collectives, decisions, process_group
from kd_lightning.distributed.launch import MEETING, ProcessInfo, place_in, wanted
from kd_lightning.engine.checkpoint_writer import Resumable
from kd_lightning.errors import ConfigError, UserError
from kd_lightning.losses.contrastive_memory import ContrastiveMemory
from kd_lightning.losses.moments import pooled
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.generators.biggan import BigGan
from kd_lightning.methods.generators.ce_gan import CeGan
from kd_lightning.methods.generators.cvae import Cvae
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.methods.real_data.dml import Dml
from kd_lightning.methods.real_data.terms import Term
from kd_lightning.methods.semi_supervised.ugan import Ugan
from kd_lightning.networks.generators import biggan, pairs, sagan
from kd_lightning.networks.generators.cvae import MlpDecoder, MlpEncoder
from kd_lightning.networks.label_embedding import LabelToHidden
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Rounds
from kd_lightning.sources.frozen_generator import GeneratedLoader
from kd_lightning.sources.vicinal import Vicinal
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.curves import Curves, KeepCurves

B, LATENT = 8, 16


def rounds(number: int, batch: int, context: Context) -> Rounds:
    return Rounds(number)


def real(number: int, batch: int, context: Context, *, answered: bool = False) -> TensorLoader:
    images, labels = patterns(2 * B * number, seed=3)
    answers = 4 * torch.randn(len(images), CLASSES, generator=torch.Generator().manual_seed(0)) if answered else None
    return context.serve((images * 255).byte(), labels, answers=answers, batch_size=batch)


def generated(number: int, batch: int, context: Context) -> GeneratedLoader:
    return GeneratedLoader(plain_generator().requires_grad_(False), number, (batch, LATENT), context)


def streams(number: int, batch: int, context: Context) -> StreamsLoader:
    """Labelled patterns, and darker ones without labels."""
    labelled, unlabelled = real(number, batch, context), real(number, batch, context)
    unlabelled.images = unlabelled.images // 2
    return StreamsLoader(labelled, unlabelled)


class Vicinities(Rounds):
    """Labels that are numbers: of each step of a discriminator's common draw every rank takes its part."""

    def __init__(self, number: int, batch: int, context: Context) -> None:
        super().__init__(number)
        self.common = Vicinal(rounds=number, batch_size=batch * context.world).prepare(bars(64))
        self.rank, self.world = context.rank, context.world

    def batch(self, number: int) -> VicinalBatch:
        self.common.set_epoch(self.epoch)
        steps = zip(*(each.chunk(2) for each in self.common.batch(number)), strict=True)
        mine = [[each.chunk(self.world)[self.rank] for each in step] for step in steps]
        return VicinalBatch(*(torch.cat(parts) for parts in zip(*mine, strict=True)))


def three_streams(number: int, batch: int, context: Context) -> StreamsLoader:
    """Labelled images, and of those without labels a batch for each of three uses."""
    few, many = (real(n, size, context) for n, size in ((2, batch), (3 * number, 3 * batch)))
    return StreamsLoader(few, many, batches=number)


class OfLabel(nn.Module):
    """A generator or discriminator without batch norm: a map of its input, and a part for each label.

    Args:
        net: of the input.
        label: labels to what is added.
        first: add it to the input, not to the output.
    """

    def __init__(self, net: nn.Module, label: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.net, self.label, self.first = net, label, first

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        said = self.label(y)
        return self.net(x + said) if self.first else (self.net(x) + said).squeeze(1)


def gan_networks(method: type[Distiller], *, batch_norm: bool) -> dict[str, nn.Module]:
    """Generator and discriminator for classes or for numbers."""
    if batch_norm and method is Ugan:
        shape: dict[str, Any] = {"size": 8, "hidden": (16,), "latent": LATENT}
        good, bad = (pairs.MlpImages(num_classes=k, **shape) for k in (CLASSES, 0))
        return {"generator": good, "bad_generator": bad, "discriminator": pairs.MlpPairs(size=8, num_classes=CLASSES)}
    classes = method in (BigGan, CeGan, Ugan)
    small: dict[str, Any] = {"channels": 1, "size": 8}
    if batch_norm and classes:
        g: nn.Module = biggan.BigGanGenerator(num_classes=CLASSES, latent=LATENT, widths=8, **small)
        return {
            "generator": g,
            "discriminator": biggan.BigGanDiscriminator(num_classes=CLASSES, widths=8, final=4, **small),
        }
    if batch_norm:
        small |= {"embedding": LabelToHidden(embed=8), "embed": 8, "attention": None, "widths": 8}
        return {
            "generator": sagan.SaganGenerator(latent=LATENT, **small),
            "discriminator": sagan.SaganDiscriminator(**small),
        }
    made: Callable[[int], nn.Module] = partial(nn.Embedding, CLASSES) if classes else LabelOnly
    verdict = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    return {
        "generator": OfLabel(plain_generator(), made(LATENT), first=True),
        "discriminator": OfLabel(verdict, made(1), first=False),
        **({"bad_generator": plain_generator()} if method is Ugan else {}),
    }


class LabelOnly(nn.Linear):
    """A number (N,) to ``width`` values."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y[:, None])


def plain_generator(latent: int = LATENT) -> nn.Module:
    """Without batch norm, whose statistics are those of a rank."""
    layers = (nn.Linear(latent, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    return nn.Sequential(*layers)


def served(case: Case) -> Callable[[int, int, Context], Any]:
    """What a case's rounds see: what it needs."""
    if case.served == "generated":
        return generated
    if "source.vicinity" in case.needs:
        return Vicinities
    if "source.free" in case.needs:
        return rounds
    if "source.two_streams" in case.needs:
        return three_streams if case.target is Ugan else streams
    return partial(real, answered=case.served == "answers" or "source.answers" in case.needs)


def made(name: str, batch: int, *, batch_norm: bool) -> Distiller:
    """The method of a case, ``batch_norm`` in student and generator; the same weights for the same case."""
    case = RANKS[name]
    torch.manual_seed(0)
    teacher = network((16, 32), batch_norm=case.batch_norm)
    with torch.no_grad():
        list(teacher.parameters())[-2].mul_(20)  # opinions
    given = {"latent": LATENT, "batch_size": batch, "kd_batch_size": batch, "image": (1, 8, 8), "num_classes": CLASSES}
    if case.target is Dml:
        given["peer"] = network((8, 16), batch_norm=batch_norm)
    optimizers = ("optimizer", "optimizer_g", "optimizer_d", "optimizer_b", "optimizer_t", "optimizer_head")
    given |= dict.fromkeys(optimizers, partial(sgd, lr=0.05))
    given |= dict.fromkeys(("made", "d_unlabelled", "b_unlabelled"), batch) | {"d_labelled": batch // 2}
    given |= {"temperature": 4.0, "eval_size": batch}
    if issubclass(case.target, ConditionalGan | Ugan):
        given |= gan_networks(case.target, batch_norm=batch_norm)
    elif case.target is Cvae:
        shape: dict[str, Any] = {"size": 8, "num_classes": CLASSES, "widths": (16, 8)}
        given |= {"encoder": MlpEncoder(**shape), "generator": MlpDecoder(**shape), "optimizer": partial(sgd, lr=1e-3)}
    elif "source.free" in case.needs:
        made_by = {"latent": (case.ranks or {}).get("hidden", LATENT)}
        given["generator"] = generator(eps=0.8, **made_by) if batch_norm else plain_generator(**made_by)
    student = network((8, 16), batch_norm=batch_norm and "student.no_batch_norm" not in case.needs)
    settings = {key: value for key, value in given.items() if key in taken(case.target)} | (case.ranks or {})
    method: Distiller = case.target(
        student=student, teacher=FrozenTeacher(teacher), task=Classification(CLASSES), log_every=1, **settings
    )
    if isinstance(method, Distill):
        method.build_terms((1, 8, 8), None)
    return method


def taken(method: type[Distiller]) -> set[str]:
    """What the constructors of a method and of its base classes take."""
    layers = [vars(c)["__init__"] for c in method.__mro__ if issubclass(c, Distiller) and "__init__" in vars(c)]
    return {name for layer in layers for name in inspect.signature(layer).parameters}


def fitted(
    method: Distiller, loader: Any, *, val: Any = None, epochs: int = 1, ckpt_path: Any = None, **settings: Any
) -> None:
    method.train()
    several = (
        {"strategy": process_group.taking_turns(), "devices": 2, **process_group.environment()}
        if collectives.world() > 1
        else {}
    )
    quiet()
    bare: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keeps = any(isinstance(callback, Resumable) for callback in settings.get("callbacks", []))
    bare |= {"num_sanity_val_steps": 0, "accelerator": "cpu", "enable_checkpointing": keeps}
    L.Trainer(max_epochs=epochs, **bare | several | settings).fit(method, Images(loader, val), ckpt_path=ckpt_path)


def here(batch: int) -> Context:
    return context(rank=collectives.rank(), world=collectives.world(), device="cpu")


def with_one_noise(method: Distiller, loader: Any) -> None:
    """Noise drawn for the whole batch, of which each rank takes its part."""
    common = torch.Generator().manual_seed(7)

    def noise(*shape: int, rng: torch.Generator = common) -> Tensor:
        whole = torch.randn(shape[0] * collectives.world(), *shape[1:], generator=rng)
        if isinstance(method, Cvae):  # its noise belongs to real images, of which a rank has every second
            return whole[collectives.rank() :: collectives.world()]
        return whole.chunk(collectives.world())[collectives.rank()]

    method.noise = noise  # type: ignore[method-assign]
    if isinstance(method, ConditionalGan):
        method.look = lambda: None  # type: ignore[method-assign]
    if isinstance(method, Ugan):
        method.latents = lambda n: noise(n, LATENT).sigmoid()  # type: ignore[method-assign]
        method.labels = lambda n: noise(n).mul(100).long().remainder(CLASSES)  # type: ignore[method-assign]
    if isinstance(method, BigGan | CeGan):
        method.classes = lambda n: noise(n).mul(100).long().remainder(CLASSES)  # type: ignore[method-assign]
    if isinstance(loader, GeneratedLoader):
        seeded = torch.Generator().manual_seed
        loader.latents = lambda number: noise(*loader.shape, rng=seeded(number))  # type: ignore[method-assign]


def state(net: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def learned(method: Distiller) -> dict[str, Tensor]:
    names = (
        "student",
        "adapted",
        "generator",
        "averaged",
        "live",
        "discriminator",
        "classifier",
        "bad_generator",
        "terms",
        "peer",
    )
    nets = {name: getattr(method, name) for name in names if getattr(method, name, None) is not None}
    return {f"{name}.{k}": v for name, net in nets.items() for k, v in state(net).items()}


def as_one(name: str, batch: int, *, common: bool = True) -> dict[str, Any]:
    """Three rounds on a batch of ``batch`` per rank, without batch norm in what learns."""
    method = made(name, batch, batch_norm=False)
    method.global_batch_losses = common
    loader = served(RANKS[name])(3, batch, here(batch))
    with_one_noise(method, loader)
    fitted(method, loader)
    assert method.teacher is not None
    return {"weights": learned(method), "counts": (method.images_made, method.teacher.asked), "logged": method.latest}


class Watch(Callback):
    """The first images that went into a network, and batch-norm statistics as validation saw them."""

    def __init__(self, method: Any) -> None:
        self.first: Tensor | None = None
        self.validated: list[dict[str, Tensor]] = []
        for net in (method.student, method.teacher.net):
            net.register_forward_pre_hook(lambda _, args: self.look(args[0]))

    def look(self, images: Tensor) -> None:
        self.first = images.detach().clone() if self.first is None else self.first

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated.append({k: v.clone() for k, v in pl_module.student.named_buffers()})


def as_two(name: str, folder: str) -> dict[str, Any]:
    """Two epochs of two rounds with batch norm, validation, curves and a checkpoint."""
    method = made(name, B, batch_norm=True)
    loader = served(RANKS[name])(2, B, here(B))
    images, labels = patterns(1001, seed=2)  # with 500 at a time the first rank has a batch more
    val = TensorLoader(
        *((images * 255).byte(), labels),
        batch_size=500,
        shuffle=False,
        rank=collectives.rank(),
        world=collectives.world(),
    )
    watch, curves = Watch(method), Curves(folder)
    callbacks = [watch, KeepCurves(curves), Resumable(Path(folder) / "last.ckpt")]
    fitted(method, loader, val=val, epochs=2, callbacks=callbacks, logger=[curves], default_root_dir=folder)
    output = method.student.eval()((images * 255).byte().float() / 255)
    return {
        "weights": learned(method),
        "buffers": {k: v.clone() for k, v in method.named_buffers()},
        "first": watch.first,
        "validated": watch.validated,
        "rows": curves.rows,
        "accuracy": float(method.trainer.callback_metrics["val/accuracy"]),
        "measured": float((output.argmax(1) == labels).float().mean()),
    }


class Cut(Callback):
    """Ends a fit in the middle of a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.after:
            raise UserError("cut")


def resumed(name: str, folder: str, *, cut: int | None) -> dict[str, Any]:
    """Fifty-five rounds, at whose fiftieth there is a checkpoint; killed and gone on with in between, or not."""
    checkpoint = Path(folder) / "last.ckpt"
    for attempt in range(2 if cut else 1):
        method = made(name, B, batch_norm=True)
        torch.manual_seed(attempt)  # what the checkpoint does not hold comes out otherwise
        callbacks = [Resumable(checkpoint, seconds=0), *([Cut(cut)] if cut and not attempt else [])]
        loader = served(RANKS[name])(55, B, here(B))
        ckpt = str(checkpoint) if attempt else None
        try:
            fitted(method, loader, epochs=1, callbacks=callbacks, ckpt_path=ckpt)
        except UserError:
            assert checkpoint.is_file()
    return {"weights": learned(method), "made": method.images_made}


def serve(rank: int, meeting: str, tasks: Connection) -> None:
    """Stand by as one of two ranks."""
    os.environ |= {MEETING: meeting, "LOCAL_RANK": str(rank), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    torch.set_num_threads(1)
    process_group.join(ProcessInfo(rank, 2, rank, 2), "cpu")
    while True:
        task = tasks.recv()
        try:
            tasks.send((True, task()))
        except BaseException:
            tasks.send((False, traceback.format_exc()))


class Pair:
    """Two processes; ``both(f, ...)`` is what ``f`` returned in each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, 0
        self.start()

    def start(self) -> None:
        self.pipes, self.processes = [], []
        self.starts += 1
        meeting = str(self.folder / f"store{self.starts}")
        for rank in range(2):
            ours, theirs = FORKS.Pipe()
            process = FORKS.Process(target=serve, args=(rank, meeting, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def both(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(partial(function, *args, **kwargs))
        answers = [pipe.recv() if pipe.poll(PATIENCE) else (False, "a rank hangs") for pipe in self.pipes]
        if failures := [said for good, said in answers if not good]:
            self.close()
            self.start()
            pytest.fail("\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    standing = Pair(tmp_path_factory.mktemp("ranks"))
    yield standing
    standing.close()


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_two_ranks_learn_the_same_from_noise_of_their_own(name: str, pair: Pair, tmp_path: Path) -> None:
    first, second = pair.both(as_two, name, str(tmp_path))
    assert same(first["weights"], second["weights"])
    assert not same(first["weights"], learned(made(name, B, batch_norm=True)))
    assert first["first"].shape == second["first"].shape
    assert not torch.equal(first["first"], second["first"])
    assert same(first["buffers"], second["buffers"])
    assert first["validated"]
    for a, b in zip(first["validated"], second["validated"], strict=True):
        assert same(a, b)
    assert first["accuracy"] == second["accuracy"] == pytest.approx(first["measured"], abs=1e-6)
    assert len(first["rows"]) >= 3
    assert second["rows"] == []
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == len(first["rows"]) + 1
    pools = [f.name for f in tmp_path.iterdir() if f.suffix == ".bin"]
    assert bool(pools) == RANKS[name].own
    assert sorted(f.name for f in tmp_path.iterdir() if f.name not in pools) == ["last.ckpt", "metrics.csv"]


# each rank's last latents are the average's, which are not the last ones of one batch
@pytest.mark.parametrize("name", [name for name, case in RANKS.items() if not case.own and "ema" not in case.ranks])
def test_two_ranks_make_of_half_a_batch_each_what_one_makes_of_all(name: str, pair: Pair) -> None:
    one = as_one(name, 2 * B)
    first, second = pair.both(as_one, name, B)
    start = learned(made(name, B, batch_norm=False))
    assert furthest(one["weights"], start) > 1e-3
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(one["weights"], first["weights"]) < 1e-5
    assert first["counts"] == second["counts"] == one["counts"]
    assert first["logged"] == pytest.approx(one["logged"], abs=1e-4)


@pytest.mark.parametrize("name", [name for name, case in RANKS.items() if case.gathers])
def test_which_they_do_not_where_each_has_losses_of_its_own(name: str, pair: Pair) -> None:
    first, second = pair.both(as_one, name, B, common=False)
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(as_one(name, 2 * B)["weights"], first["weights"]) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dfq", "kd", "features"])
def test_ranks_go_on_to_the_same_bits(name: str, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = pair.both(resumed, name, str(tmp_path / "whole"), cut=None)
    (tmp_path / "cut").mkdir()
    for rank in pair.both(resumed, name, str(tmp_path / "cut"), cut=53):
        assert same(rank["weights"], whole["weights"])
        assert rank["made"] == whole["made"]


def obtained(root: str, everywhere: bool) -> tuple[str, str, int]:
    store = Store(root, decided=decisions.decided)
    calls = []

    def build(folder: Path) -> None:
        calls.append(collectives.world())
        time.sleep(0.3 * collectives.rank())  # nobody tidies up under a rank that is late
        (folder / f"by{collectives.rank()}").touch()
        if not everywhere:
            store.obtain("within", {}, lambda inner: (inner / "x").touch())

    folder = store.obtain("thing", {"everywhere": everywhere}, build, everywhere=everywhere)
    decisions.decided(lambda: None)  # all have returned
    return str(folder), " ".join(sorted(f.name for f in folder.glob("by*"))), sum(calls)


def test_the_first_rank_builds_and_the_others_wait(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.both(obtained, str(tmp_path), False)
    assert first == (second[0], "by0", 1)
    assert second[1:] == ("by0", 0)
    assert pair.both(obtained, str(tmp_path), False) == [(first[0], "by0", 0)] * 2


def test_a_fit_is_built_by_all(pair: Pair, tmp_path: Path) -> None:
    assert [rest for _, *rest in pair.both(obtained, str(tmp_path), True)] == [["by0 by1", 2]] * 2


def refused(root: str) -> str:
    def build(folder: Path) -> None:
        raise UserError("no: type this instead")

    with pytest.raises(UserError) as caught:
        Store(root, decided=decisions.decided).obtain("thing", {}, build)
    return str(caught.value)


def test_an_error_of_the_first_rank_ends_all_with_its_line(pair: Pair, tmp_path: Path) -> None:
    assert pair.both(refused, str(tmp_path)) == ["no: type this instead"] * 2
    assert pair.both(decisions.decided, collectives.rank) == [0, 0]


def asked_by_each(folder: str) -> tuple[list[int], int, int, str]:
    client = Fake()
    door = asking(client, Path(folder), budget=8) if collectives.rank() == 0 else None
    teacher = QueryTeacher(door, client.described)
    x = (torch.arange(3).view(3, 1, 1, 1) + 4 * collectives.rank()) / 255
    said = teacher(x).argmax(1).tolist()
    with pytest.raises(UserError) as caught:
        teacher(x + 10 / 255)
    return said, teacher.asked, client.answered, str(caught.value)


def test_the_first_rank_asks_for_all(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.both(asked_by_each, str(tmp_path))
    assert first[:3] == ([0, 1, 2], 6, 6)
    assert second[:3] == ([1, 2, 0], 6, 0)
    assert first[3] == second[3]
    assert "teacher.budget=8 images: 6 asked, 6 more wanted" in first[3]


def slope(x: Tensor) -> Tensor:
    mine = x.chunk(collectives.world())[collectives.rank()].clone().requires_grad_()
    rows = collectives.gathered(mine)
    (rows.exp().mean() ** 3).backward()
    assert mine.grad is not None
    return mine.grad


def test_gradients_cross_the_gathering(pair: Pair) -> None:
    """Summed over ranks, as every rank computes the loss; DDP's average takes the factor back."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    parts = pair.both(slope, x)
    torch.testing.assert_close(torch.cat(parts), 2 * slope(x))


def shipped_terms() -> Iterator[tuple[str, dict[str, Any]]]:
    """The terms of conf/method that name a loss, by method and name."""
    for file in sorted((resolvers.conf_dir() / "method").glob("*.yaml")):
        settings: Any = OmegaConf.to_container(OmegaConf.load(file))
        for part in (settings, *settings.values()):  # stages of its own, too
            method = (part.get("method") if isinstance(part, dict) else None) or {}
            for name, term in (method.get("terms") or {}).items():
                if term and "loss" in term:
                    term["loss"] = {k: 4.0 if str(v).startswith("$") else v for k, v in term["loss"].items()}
                    yield f"{file.stem}.{name}", term


def comparing() -> dict[str, dict[str, Any]]:
    """Those that are no mean over images."""
    return {name: term for name, term in shipped_terms() if term.get("global_batch")}


SEES_OWN_IMAGES = {"ofd.features", "dist_dense.dist", "ktaad.code"}
"""Losses of whole maps that depend on a batch: each rank takes its own, as their maps are many bytes to send."""


def test_all_other_terms_are_means_over_images() -> None:
    """So that the mean over ranks is what one rank makes of the whole batch."""
    shapes = {"wide": (3, 8, 8), "deep": (5, 4, 4), "vector": (5,)}
    rng = torch.Generator().manual_seed(0)
    rows = [{path: torch.randn(8, *shape, generator=rng) for path, shape in shapes.items()} for _ in range(2)]
    labels = torch.arange(8) % 4
    for name, given in shipped_terms():
        if given.get("global_batch") or name in SEES_OWN_IMAGES:
            continue
        file = given["loss"]["_target_"].split(".")[-2]
        taps: Any = {"feature_maps": ["wide", "deep"], "dense": "deep", "variational": "deep"}.get(file, "vector")
        term = Term(weight=1.0, loss=instantiate(given["loss"]), student=taps, teacher=taps)
        term.build(shapes, shapes, None)
        term.eval()  # batch norm has its own setting for ranks

        def loss(part: slice, term: Term = term) -> float:
            both = ({path: values[part] for path, values in side.items()} for side in rows)
            return term(*both, {"labels": labels[part], "epoch": 0}, lambda own: own).item()

        halves = loss(slice(4)), loss(slice(4, 8))
        assert sum(halves) / 2 == pytest.approx(loss(slice(8)), rel=1e-5), name


def term_slopes(common: bool) -> dict[str, tuple[float, Tensor]]:
    """Each of those losses on this rank's part of 8 images, and its gradient there."""
    slopes, place = {}, collectives.rank()
    for name, given in comparing().items():
        settings = {key: given[key] for key in ("global_batch", "all_views") if key in given}
        small = {"width": 5, "negatives": 6} if "Memory" in given["loss"]["_target_"] else {}
        term = Term(weight=1.0, loss=instantiate({**given["loss"], **small}), **settings)
        views = inspect.signature(term.make_loss).parameters.get("views")
        rng = torch.Generator().manual_seed(0)
        whole = torch.randn(2, views.default if views else 1, 8, 5, generator=rng)
        own, told = (rows.clone() for rows in whole.chunk(collectives.world(), 2)[place])
        torch.manual_seed(0)
        term.build({"output": (5,)}, {"output": (5,)}, 20)
        if isinstance(term.loss, ContrastiveMemory):
            drawn = torch.randint(20, (8, 6), generator=rng)
            term.loss.draw = lambda index, drawn=drawn: drawn[: len(index)]  # type: ignore[method-assign, misc]
        known = {"labels": torch.arange(8) % 4, "index": torch.arange(8) + 3}
        known = {key: rows.chunk(collectives.world())[place] for key, rows in known.items()}
        own.requires_grad_()
        both = ({"output": rows.flatten(0, 1)} for rows in (own, told))
        gathered = collectives.gathered if common else lambda rows: rows
        loss = term(*both, {**known, "epoch": 0, "views": len(own)}, gathered)
        loss.backward()
        assert own.grad is not None
        slopes[name] = loss.item(), own.grad
    return slopes


def test_losses_that_are_no_mean_over_images_see_those_of_all_ranks(pair: Pair) -> None:
    one, (first, second) = term_slopes(True), pair.both(term_slopes, True)
    expected = {"sp", "rkd", "pkt", "cc", "srd", "dist", "mlkd", "crd", "sskd", "ghnd"}
    assert expected <= {name.partition(".")[0] for name in one}
    for name, (loss, slope) in one.items():
        assert first[name][0] == second[name][0] == pytest.approx(loss, rel=1e-5), name
        torch.testing.assert_close(
            torch.cat([first[name][1], second[name][1]], 1), 2 * slope, rtol=1e-4, atol=1e-5, msg=name
        )
    apart, _ = pair.both(term_slopes, False)
    assert all(apart[name][0] != pytest.approx(loss, rel=1e-5) for name, (loss, _) in one.items())


def test_means_of_equal_numbers_are_those_numbers(pair: Pair) -> None:
    x = torch.randn(100)
    assert all(torch.equal(m, x) for m in pair.both(collectives.mean, x))


def test_pooled_statistics_are_those_of_the_whole_batch() -> None:
    x = 3 + torch.randn(12, 5)
    halves = x.chunk(2)
    mean, var = pooled(torch.stack([h.mean(0) for h in halves]), torch.stack([h.var(0, correction=0) for h in halves]))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0, correction=0))


def nan_on_the_second(name: str) -> str:
    method = made(name, B, batch_norm=False)
    loader = served(RANKS[name])(3, B, here(B))
    if collectives.rank() == 1:
        method.noise = lambda *shape: torch.full(shape, float("nan"))  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        fitted(method, loader)
    return str(caught.value)


def test_a_nan_of_one_rank_is_said_by_all(pair: Pair) -> None:
    first, second = pair.both(nan_on_the_second, "dafl")
    assert first == second
    assert "was not finite in round 0" in first


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1"}, None),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, ProcessInfo(5, 8, 1, 4)),
        (
            {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"},
            ProcessInfo(3, 4, 1, 2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_a_process_knows_its_place(environment: dict[str, str], place: ProcessInfo | None) -> None:
    assert place_in(environment) == place


@pytest.mark.parametrize(
    ("devices", "number"), [("auto", 1), (-1, 1), (1, 1), (2, 2), ("2", 2), ([0, 2], 2), ("0,1,3", 3), ("two", 1)]
)
def test_ranks_wanted_on_the_cpu(devices: Any, number: int) -> None:
    assert wanted({"devices": devices, "accelerator": "cpu"}) == number


def test_gpus_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert wanted({"devices": "auto", "accelerator": "auto"}) == 4
    assert wanted({"devices": 3, "accelerator": "auto"}) == 3
    assert faults(composed("trainer=ddp", "trainer.devices=8")) == ["trainer.devices=8: there are 4 GPUs"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.devices=2", "trainer.accelerator=cpu"], "trainer: several devices need a strategy"),
        (["+trainer.num_nodes=2"], "trainer: several devices need a strategy"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=True: "),
        (["trainer=ddp", "trainer.sync_batchnorm=perhaps"], "trainer.sync_batchnorm: expected true or false"),
        (["trainer=ddp", "trainer.global_batch_losses=3"], "trainer.global_batch_losses: expected true or false"),
        (["trainer=ddp", "+trainer.max_steps=3"], "trainer.max_steps=3: "),
        (["trainer=ddp", "+teacher.fit.trainer.devices=1"], "teacher.fit.trainer.devices: all fits of a run share"),
        (["trainer=ddp", "method=rdskd", "+rdskd.trainer.devices=1"], "stages[0].trainer.devices: all fits"),
    ],
)
def test_what_ranks_cannot_do_is_refused(overrides: list[str], said: str) -> None:
    assert any(line.startswith(said) for line in faults(composed(*overrides))), faults(composed(*overrides))


@pytest.mark.parametrize("name", ["ddp", "default"])
def test_trainers_are_accepted(name: str) -> None:
    assert faults(composed(f"trainer={name}", "trainer.accelerator=cpu")) == []


def test_one_device_is_the_default_trainer() -> None:
    alone = ranks.settle(composition("trainer=ddp", "trainer.accelerator=cpu").trainer.settings)
    assert alone == composition("trainer.accelerator=cpu").trainer.settings


def test_a_process_alone_refuses_to_be_two() -> None:
    with pytest.raises(ConfigError, match="this process is alone: the command kd-lightning starts"):
        ranks.settle(composition("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2").trainer.settings)


def settled(*overrides: str) -> Any:
    trainer = composition("trainer=ddp", "trainer.accelerator=cpu", *overrides).trainer
    try:
        found = ranks.settle(trainer.settings)
    except ConfigError as error:
        return str(error)
    return {key: found[key] for key in ("devices", "num_nodes", "sync_batchnorm", "global_batch_losses")}


def test_what_is_there_takes_the_place_of_auto(pair: Pair) -> None:
    expected = {"devices": 2, "num_nodes": 1, "sync_batchnorm": False, "global_batch_losses": True}
    assert pair.both(settled) == [expected] * 2
    assert pair.both(settled, "trainer.devices=2") == [expected] * 2
    for said in pair.both(settled, "trainer.devices=3"):
        assert "2 ranks were started on each of 1 machine(s), and the trainer asks for 3" in said


def command(folder: Path, *overrides: str) -> list[str]:
    two = ("trainer=ddp", "trainer.devices=2", f"hydra.run.dir={folder}")
    return [sys.executable, "-m", "kd_lightning.cli.main", *TINY, *DAFL, "method=dafl", *two, *overrides]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_a_lost_rank_ends_the_run_and_the_same_command_goes_on(tmp_path: Path, store: Path) -> None:
    environment = os.environ | {"KD_CHECKPOINT_SECONDS": "0"}
    long = ("trainer.max_epochs=4", "source.rounds=40")
    run = subprocess.Popen(command(tmp_path / "run", *long), env=environment, stderr=subprocess.PIPE, text=True)
    begun = ("run-*.unfinished", "fit-*.unfinished/last.ckpt", "fit-????????????")
    wait_until(lambda: all(list(store.glob(each)) for each in begun), run)
    first, second = children(run.pid)
    os.kill(second, signal.SIGKILL)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 128 + signal.SIGKILL, said
    assert "rank 1 of 2 was killed by SIGKILL" in said.splitlines()[-1]
    assert not Path(f"/proc/{first}").exists()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "failed"
    assert "rank 1 of 2 was killed by SIGKILL; the same command goes on" in result["reason"]
    again = subprocess.run(
        command(tmp_path / "run", *long), env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "dafl on digits, seed 0" in again.stdout
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "ok"
    assert result["stored"] is False
    assert result["cost"]["images_synthesised"] == 2 * 4 * 40 * 16
