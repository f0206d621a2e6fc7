"""Terms with taps and adapters: what is compared, what is trained, kept and handed on, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from toy import CLASSES, adam, network, patterns, sgd, trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.engine.checkpoint_writer import Resumable
from kd_lightning.errors import ConfigError
from kd_lightning.losses.response import kl
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.teachers.white_box import FrozenTeacher

LAST = "features.-1"


class Regressor(nn.Module):
    """The student's map to the teacher's width."""

    def __init__(self, *, student_shapes: Any, teacher_shapes: Any) -> None:
        super().__init__()
        self.student_shapes, self.teacher_shapes = student_shapes, teacher_shapes
        self.conv = nn.Conv2d(student_shapes[0][0], teacher_shapes[0][0], 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(student), teacher


class Paraphraser(nn.Module):
    """The teacher's map through a bottleneck, and the map."""

    def __init__(self, *, teacher_shapes: Any) -> None:
        super().__init__()
        width = teacher_shapes[0][0]
        self.encoder = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2))
        self.decoder = nn.Conv2d(width // 2, width, 1)

    def forward(self, student: None, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.encoder(teacher)), teacher


class Translator(nn.Module):
    """The student's map to the factors of a paraphraser."""

    def __init__(self, *, student_shapes: Any, teacher_shapes: Any) -> None:
        super().__init__()
        self.paraphraser = Paraphraser(teacher_shapes=teacher_shapes)
        self.student = nn.Conv2d(student_shapes[0][0], teacher_shapes[0][0] // 2, 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(student), self.paraphraser.encoder(teacher)


class Memory(nn.Module):
    """A loss with a parameter, and a buffer for every image."""

    def __init__(self, *, num_images: int, student_shapes: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(student_shapes[0][0], 1, 1))
        self.register_buffer("seen", torch.zeros(num_images))

    def forward(self, student: Tensor, teacher: Tensor, *, index: Tensor, labels: Tensor) -> Tensor:
        assert len(labels) == len(index)
        self.seen[index] += 1
        return (self.scale * student - teacher).square().mean()


def images(n: int = 128, **settings: Any) -> TensorLoader:
    x, labels = patterns(n, seed=3)
    return TensorLoader((x * 255).byte(), labels, **{"batch_size": 32, "shuffle": True} | settings)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(1)
    return network((16, 32), batch_norm=True).eval()


def made(
    teacher: nn.Module | None, *, num_images: int | None = 128, batch_norm: bool = True, **settings: Any
) -> Distill:
    torch.manual_seed(0)
    given = {"optimizer": partial(sgd, lr=0.01), "label": 0.0} | settings
    student = network((8, 16), batch_norm=batch_norm)
    asked = None if teacher is None else FrozenTeacher(teacher)
    method = Distill(student=student, teacher=asked, task=Classification(CLASSES), **given)
    method.build_terms((1, 8, 8), num_images)
    return method


def hint(**changes: Any) -> dict[str, Any]:
    return {"hint": {"weight": 1.0, "loss": F.mse_loss, "student": LAST, "teacher": LAST, "adapt": Regressor} | changes}


def fitted(method: Distill, loader: Any = None, *, epochs: int = 1, ckpt_path: Any = None, **settings: Any) -> Distill:
    method.train()
    trainer(epochs, **settings).fit(method, Images(loader or images(), None), ckpt_path=ckpt_path)
    return method


def state(net: Any) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def moved(method: Distill, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}


def test_a_hint_trains_student_and_adapter_up_to_its_tap(teacher: nn.Module) -> None:
    method = made(teacher, terms=hint())
    adapter: Any = method.terms["hint"].adapt
    assert (adapter.student_shapes, adapter.teacher_shapes) == ([(16, 4, 4)], [(32, 4, 4)])
    before = state(method)
    batch = next(iter(images()))
    told = method.ask(batch.x, None)
    assert told.keys() == {LAST}
    student, wanted = method.student.net.features, method.white.net.net.features
    standardised = method.student.standardise(batch.x)
    loss = F.mse_loss(adapter.conv(student(standardised)), wanted(method.white.standardise(batch.x)))
    seen = method.look("student", batch.x, output=False)
    own = method.terms["hint"](seen, told, {"epoch": 0}, method.gathered)
    torch.testing.assert_close(own, loss)
    fitted(method)
    changed = moved(method, before)
    assert {"terms.hint.adapt.conv.weight", "student.net.features.0.weight"} <= changed
    assert not any(key.startswith("student.net.head") for key in changed)
    assert not any(key.startswith("terms") for key in method.student.state_dict())
    assert method.kept_modules().keys() == {"hint"}


def test_building_draws_no_number_that_training_would_have_drawn(teacher: nn.Module) -> None:
    made(None, label=1.0)
    without = torch.rand(3)
    made(teacher, terms=hint())
    assert torch.equal(torch.rand(3), without)


def test_modules_learned_on_the_teacher_are_handed_on_bit_for_bit(teacher: nn.Module, tmp_path: Path) -> None:
    terms = {"factors": {"weight": 1.0, "loss": F.mse_loss, "student": None, "teacher": LAST, "adapt": Paraphraser}}
    first = made(teacher, terms=terms)
    before = state(first)
    assert not first.trains_student
    fitted(first)
    changed = moved(first, before)
    assert {key.split(".")[0] for key in changed} == {"terms"}
    kept = state(first.kept_modules()["factors"])
    save_file({key: value.contiguous() for key, value in kept.items()}, file := str(tmp_path / "factors.safetensors"))
    second = made(teacher, terms=hint(adapt=Translator, given={"paraphraser": file}))
    before = state(second)
    fitted(second)
    assert "terms.hint.adapt.student.weight" in moved(second, before)
    translator: Any = second.terms["hint"].adapt
    held = state(translator.paraphraser)
    assert held.keys() == kept.keys()
    assert all(torch.equal(held[key], kept[key]) for key in kept)  # batch-norm statistics, too
    with pytest.raises(ConfigError, match=r"hint: given\.paraphrase: Translator has no such part; it has para"):
        made(teacher, terms=hint(adapt=Translator, given={"paraphrase": file}))


def test_a_loss_may_be_a_module_and_ask_for_what_there_is(teacher: nn.Module) -> None:
    asked: dict[str, Any] = {}

    def curious(student: Tensor, teacher: None, *, labels: Any, index: Any, epoch: Any, student_logits: Any,
                teacher_logits: Any) -> Tensor:  # fmt: skip
        asked.update({key: value for key, value in locals().items() if key != "asked"})
        return student.mean() * 0

    terms = hint(loss=Memory) | {"curious": {"weight": 1.0, "loss": curious, "teacher": None}}
    method = fitted(made(teacher, terms=terms), epochs=2)
    loss: Any = method.terms["hint"].loss
    assert loss.scale.shape == (32, 1, 1)  # of what the adapter makes
    assert not torch.equal(loss.scale, torch.ones(32, 1, 1))
    assert torch.equal(loss.seen, torch.full((128,), 2.0))  # each image once an epoch
    assert asked["teacher"] is None
    assert asked["epoch"] == 1
    assert asked["labels"].shape == asked["index"].shape == (32,)
    assert asked["student_logits"].shape == asked["teacher_logits"].shape == (32, CLASSES)
    assert method.kept_modules().keys() == {"hint", "hint_loss"}


def test_stored_answers_are_not_asked_for_again(teacher: nn.Module) -> None:
    answers = torch.randn(128, CLASSES, generator=torch.Generator().manual_seed(0))
    seen = []

    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append(teacher)
        return kl(student, teacher)

    terms = hint() | {"response": {"weight": 1.0, "loss": noted}}
    method = made(teacher, terms=terms)
    count: Any = method.teacher
    ends = []
    method.white.net.net.head.register_forward_hook(lambda *_: ends.append(1))
    seen.clear()
    ends.clear()
    fitted(method, images(answers=answers, shuffle=False))
    assert torch.equal(torch.cat(seen), answers)
    assert not ends  # its forward pass ended at the tap
    assert count.asked == 128
    method.white.net.net.head._forward_hooks.clear()


def test_further_views_of_the_images(teacher: nn.Module) -> None:
    rows: dict[str, int] = {}

    def counted(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            rows[name] = len(student)
            return kl(student, teacher)

        return loss

    terms = {
        "own": {"weight": 1.0, "loss": counted("own")},
        "all": {"weight": 1.0, "loss": counted("all"), "all_views": True},
    }
    turned = lambda x: torch.cat([x, x.rot90(1, (2, 3))])  # noqa: E731
    fitted(made(teacher, terms=terms, label=1.0, views=turned))
    assert rows == {"own": 32, "all": 64}


def test_the_weight_may_grow(teacher: nn.Module) -> None:
    one = lambda student, teacher: student.sum() * 0 + 1  # noqa: E731
    term = made(teacher, terms={"one": {"weight": 6.0, "loss": one, "warm_up": 3}}).terms["one"]
    values = [float(term({"output": torch.ones(1)}, {"output": None}, {"epoch": e}, None)) for e in range(5)]
    assert values == [2.0, 4.0, 6.0, 6.0, 6.0]


def wrong(**changes: Any) -> dict[str, Any]:
    return hint(**{"adapt": None} | changes)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (
            wrong(),
            rf"hint: student {LAST} \(16, 4, 4\) and teacher {LAST} \(32, 4, 4\) do not fit mse_loss, and",
        ),
        (wrong(loss=nn.MSELoss), "do not fit MSELoss, and there is no adapter"),
        (hint(student="output"), rf"student output \({CLASSES},\) and .* do not fit the adapter Regressor"),
        (wrong(student="features.2"), r"no adapter .* size of tensor"),
        (wrong(student="layer2"), r"SmallConvNet has no layer2; it has features, pool, head"),
    ],
)
def test_what_does_not_fit_is_refused(teacher: nn.Module, terms: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(teacher, terms=terms)


def test_a_memory_needs_images_that_last(teacher: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"terms\.hint: Memory keeps something for every image.*source=real"):
        made(teacher, terms=hint(loss=Memory), num_images=None)
    settings = {"terms": {"hint": {"weight": 1.0, "loss": {"_target_": f"{__name__}.Memory"}}}}
    asked = {"source.images", "source.index", "source.labels", "teacher"}
    assert Distill.needs(label=0.0, **settings) == asked | {"task.multi_label"}  # losses of others take any labels
    settings["terms"]["hint"]["teacher"] = LAST  # type: ignore[assignment]
    assert "teacher.features" in Distill.needs(label=0.0, **settings)
    assert "teacher" not in Distill.needs(terms={"ls": {"weight": 1.0, "loss": F.mse_loss, "teacher": None}})


def test_what_is_frozen_stays_as_it_is(teacher: nn.Module) -> None:
    method = made(teacher, label=1.0, freeze=["features.0", "features.1", "features.-3"])
    before = state(method)
    fitted(method)
    changed = {key.rpartition(".")[0] for key in moved(method, before)}
    assert changed == {"student.net.features.5", "student.net.head"}


def test_rates_of_their_own(teacher: nn.Module) -> None:
    method = made(teacher, terms=hint(), label=1.0, lr_of={"terms.hint": 0.0, "features.0": 0.5, "features": 0.0})
    before = state(method)
    (optimizer,), _ = method.configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5, 0.0, 0.01]
    fitted(method)
    weights = {key for key in moved(method, before) if "running" not in key and "num_batches" not in key}
    assert {key.rpartition(".")[0] for key in weights} == {"student.net.features.0", "student.net.head"}


def test_the_gradient_is_clipped(teacher: nn.Module) -> None:
    settings: dict[str, Any] = {"label": 100.0, "optimizer": partial(torch.optim.SGD, lr=1.0)}
    method = made(None, clip=0.01, **settings)
    before = state(method)
    fitted(method, images(32))  # one update
    steps = [(value.detach() - before[key]).norm() for key, value in method.named_parameters()]
    assert float(torch.stack(steps).norm()) == pytest.approx(0.01, rel=1e-3)


def without_norm(**settings: Any) -> Distill:
    return made(None, label=1.0, batch_norm=False, **settings)


def test_batches_add_up_to_one_update() -> None:
    whole = fitted(without_norm(), images(batch_size=64, shuffle=False))
    parts = fitted(without_norm(accumulate=2), images(batch_size=32, shuffle=False))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert parts.student_updates(4) == whole.student_updates(2) == 2
    last = without_norm(accumulate=3)
    before = state(last)
    fitted(last, images(32))  # one batch: the last of its epoch updates
    assert moved(last, before)
    assert last.student_updates(1) == 1


class Killed(Exception):
    pass


def saving(*callbacks: Any) -> L.Trainer:
    bare: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, callbacks=list(callbacks), **bare)


def test_a_fit_goes_on_between_two_updates(tmp_path: Path) -> None:
    whole = fitted(without_norm(accumulate=3, terms={}), images(), epochs=2)

    class Dies(Distill):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if self.rounds_done == 2:  # two batches are held
                raise Killed
            super().training_step(batch, batch_idx)

    settings: dict[str, Any] = {"optimizer": partial(sgd, lr=0.01), "label": 1.0, "accumulate": 3}
    torch.manual_seed(0)
    dying = Dies(student=network((8, 16)), teacher=None, task=Classification(CLASSES), **settings)
    file = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        saving(Resumable(file, seconds=0)).fit(dying.train(), Images(images(), None))
    torch.manual_seed(5)
    on = Distill(student=network((8, 16)), teacher=None, task=Classification(CLASSES), **settings)
    fitted(on, images(), epochs=2, ckpt_path=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), on.parameters(), strict=True))


def test_half_precision(teacher: nn.Module) -> None:
    loss = lambda s, t: F.mse_loss(s.float(), t.float())  # noqa: E731
    method = made(teacher, terms=hint(loss=loss), optimizer=partial(adam, lr=1e-3))
    before = state(method)
    fitted(method, precision="bf16-mixed")
    assert "terms.hint.adapt.conv.weight" in moved(method, before)
    assert all(value.isfinite().all() for value in method.state_dict().values())
