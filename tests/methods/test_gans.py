"""Generators that are told a label make images of it, and do not without their signal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import ProcessInfo, bars, drawn, fitted, misread, trained_reader
from safetensors.torch import save_file
from torch import Tensor, nn
from toy import CLASSES, adam, lucky, patterns, trained_teacher

from kd_lightning.core.tasks import Classification
from kd_lightning.data.diff_augment import DiffAugment
from kd_lightning.data.loader import TensorLoader
from kd_lightning.errors import TeacherError
from kd_lightning.methods.base.averages import average
from kd_lightning.methods.generators.biggan import BigGan
from kd_lightning.methods.generators.ccgan import CcGan
from kd_lightning.methods.generators.label_embedding import LabelEmbedding
from kd_lightning.networks.generators import biggan, sagan
from kd_lightning.networks.label_embedding import LabelToHidden
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.vicinal import Vicinal
from kd_lightning.teachers.white_box import FrozenTeacher

LATENT, EMBED = 8, 64
mild = DiffAugment(colour=False, cutout=0.25)


def class_gan(lr_g: float = 2e-3, teacher: nn.Module | None = None, first: int = 0, **settings: Any) -> BigGan:
    torch.manual_seed(first)
    small: dict[str, Any] = {"num_classes": CLASSES, "channels": 1, "size": 8, "init": "orthogonal"}
    return BigGan(
        **{"latent": LATENT, "augment": mild, "ema": 0.97, "ema_from": 20} | settings,
        student=nn.Linear(1, 1),
        teacher=None if teacher is None else FrozenTeacher(teacher),
        task=Classification(CLASSES),
        generator=biggan.BigGanGenerator(latent=LATENT, widths=(32, 16), **small),
        discriminator=biggan.BigGanDiscriminator(widths=(16, 32, 32), final=4, **small),
        optimizer_d=partial(adam, lr=2e-3, betas=(0.0, 0.99)),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.0, 0.99)),
    )


def real_patterns() -> TensorLoader:
    images, labels = patterns(512, seed=3)
    return TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=True)


@torch.no_grad()
def made(method: Any, y: Tensor) -> Tensor:
    return method.generator.eval()(torch.randn(len(y), LATENT, generator=torch.Generator().manual_seed(5)), y)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return trained_teacher()


def named_rightly(method: Any, classifier: nn.Module) -> float:
    y = torch.arange(CLASSES).repeat(64)
    return float((classifier(made(method, y)).argmax(1) == y).float().mean())


@pytest.mark.slow
def test_biggan_makes_images_of_the_class_it_is_told(classifier: nn.Module) -> None:
    def learned(first: int) -> tuple[float, Tensor]:
        method = fitted(class_gan(d_steps=2, first=first), real_patterns(), epochs=16)
        return named_rightly(method, classifier), made(method, torch.full((64,), 3))

    def good(found: tuple[float, Tensor]) -> bool:
        return found[0] >= 0.9 and bool(found[1].std(0).mean() > 0.03)  # not one image, over and over

    rightly, x = lucky(range(5), learned, good)
    assert good((rightly, x)), rightly
    assert x.min() >= 0
    assert x.max() <= 1


def test_biggan_does_not_where_its_generator_stands_still(classifier: nn.Module) -> None:
    assert named_rightly(fitted(class_gan(lr_g=0.0), real_patterns(), epochs=2), classifier) <= 0.5


class Level(nn.Module):
    """Says how bright an image is; makes images of one brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == 2:
            return (self.weight + 0 * x.sum(1))[:, None, None, None].expand(-1, 1, 8, 8)
        return self.weight * x.mean((1, 2, 3))


@pytest.mark.parametrize(("d_steps", "accumulate"), [(1, 1), (1, 4), (2, 4)])
def test_accumulated_gradients_are_those_of_the_whole(d_steps: int, accumulate: int) -> None:
    method = BigGan(
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(CLASSES),
        latent=2,
        generator=Level(),
        discriminator=Level(),
        d_steps=d_steps,
        accumulate=accumulate,
        optimizer_d=partial(torch.optim.SGD, lr=1.0),
        optimizer_g=partial(torch.optim.SGD, lr=1.0),
    )
    images = torch.arange(32).mul(8).byte().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    fitted(method, TensorLoader(images, torch.zeros(32, dtype=torch.long), batch_size=32, shuffle=False), epochs=1)
    means = (images[:, 0, 0, 0].float() / 255).view(d_steps, -1).mean(1)
    weight = 0.1 + float(sum(means - 0.1))
    assert method.discriminator.weight.item() == pytest.approx(weight, abs=1e-5)
    assert method.generator.weight.item() == pytest.approx(0.1 + weight, abs=1e-5)


@pytest.fixture(scope="module")
def t1() -> Normalized:
    net = trained_reader()
    places = torch.linspace(0, 1, 101)
    assert misread(net, drawn(places, seed=9), places) < 0.05
    return net


@pytest.fixture(scope="module")
def t2(t1: Normalized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the label embedding."""
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in t1.state_dict().items()}
    method = LabelEmbedding(
        student=t1,
        teacher=None,
        task=ProcessInfo(),
        embedding=LabelToHidden(embed=EMBED),
        optimizer=partial(adam, lr=2e-3),
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    )
    fitted(method, Vicinal(rounds=150, batch_size=128, m_kappa=0.0, sigma=0.0).prepare(bars()), epochs=6)
    assert all(torch.equal(v, before[k]) for k, v in t1.state_dict().items()), "T1 is frozen"
    file = tmp_path_factory.mktemp("t2") / "embedding.safetensors"
    save_file(method.embedding.state_dict(), file)
    return file


@pytest.mark.slow
def test_t1s_last_layer_reads_the_label_back_from_t2(t1: Normalized, t2: Path) -> None:
    embedding = LabelToHidden(embed=EMBED)
    load_weights(embedding, t2)
    y = torch.linspace(0, 1, 1001)
    with torch.no_grad():
        read = t1.net.h2y(embedding(y)).squeeze(1)  # type: ignore[operator,union-attr]
    assert (read - y).square().mean() <= 1e-4


def number_gan(t2: Path, lr_g: float = 2e-3, first: int = 0, **settings: Any) -> CcGan:
    torch.manual_seed(first)
    small: dict[str, Any] = {"embed": EMBED, "channels": 1, "size": 8, "attention": None}
    return CcGan(
        **{"latent": LATENT, "augment": mild, "ema": 0.97, "ema_from": 20, "embedding": str(t2)} | settings,
        student=nn.Linear(1, 1),
        teacher=None,
        task=ProcessInfo(),
        generator=sagan.SaganGenerator(
            embedding=LabelToHidden(embed=EMBED),
            latent=LATENT,
            widths=(32, 16),
            momentum=0.1,
            momentum_out=0.1,
            **small,
        ),
        discriminator=sagan.SaganDiscriminator(embedding=LabelToHidden(embed=EMBED), widths=(16, 32), **small),
        optimizer_d=partial(adam, lr=2e-3, betas=(0.0, 0.99)),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.0, 0.99)),
    )


def bars_near(kind: Any, rounds: int) -> Any:
    return Vicinal(rounds=rounds, batch_size=64, kind=kind, m_kappa=1.0).prepare(bars())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_ccgan_makes_images_of_the_number_it_is_told(kind: str, t1: Normalized, t2: Path) -> None:
    y = torch.linspace(0, 1, 256)

    def learned(first: int) -> tuple[float, float]:
        method = fitted(number_gan(t2, d_steps=2, first=first), bars_near(kind, 200))
        return misread(t1, made(method, y), y), float(made(method, torch.full((64,), 0.5)).std(0).mean())

    def good(found: tuple[float, float]) -> bool:
        return found[0] <= 0.1 and found[1] > 0.03  # not one image, over and over

    assert good(found := lucky(range(5), learned, good)), found


def test_ccgan_does_not_where_its_generator_stands_still(t1: Normalized, t2: Path) -> None:
    y = torch.linspace(0, 1, 256)
    assert misread(t1, made(fitted(number_gan(t2, lr_g=0.0), bars_near("soft", 30)), y), y) >= 0.2


def test_weights_of_another_embedding_are_refused(tmp_path: Path) -> None:
    save_file(LabelToHidden(embed=8).state_dict(), tmp_path / "narrow.safetensors")
    with pytest.raises(TeacherError, match="does not fit LabelToHidden"):
        number_gan(tmp_path / "narrow.safetensors")


def test_the_embedding_is_read_into_both_and_stays_as_it_is(t2: Path) -> None:
    method = number_gan(t2)
    wanted = LabelToHidden(embed=EMBED)
    load_weights(wanted, t2)
    fitted(method, bars_near("soft", 2))
    for net in (method.learner, method.generator, method.discriminator):
        for name, value in wanted.state_dict().items():
            assert torch.equal(net.embedding.state_dict()[name], value), name  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("make", ["classes", "numbers"])
def test_a_round_cuts_its_batch_into_steps_of_the_discriminator(make: str, t2: Path) -> None:
    method: Any = class_gan(d_steps=4) if make == "classes" else number_gan(t2, d_steps=4)
    seen: dict[str, list[int]] = {"discriminator": [], "generator": []}
    method.discriminator.register_forward_pre_hook(lambda _, args: seen["discriminator"].append(len(args[0])))
    method.live.register_forward_pre_hook(lambda _, args: seen["generator"].append(len(args[0])))
    steps = {"d": 0, "g": 0}
    for name, build in (("d", method.make_optimizer_d), ("g", method.make_optimizer_g)):

        def counting(parameters: Any, name: str = name, build: Any = build) -> Any:
            optimizer = build(parameters)
            optimizer.register_step_post_hook(lambda *_: steps.update({name: steps[name] + 1}))
            return optimizer

        setattr(method, f"make_optimizer_{name}", counting)
    rounds = 8
    fitted(method, real_patterns() if make == "classes" else bars_near("soft", rounds))
    assert steps == {"d": 4 * rounds, "g": rounds}
    assert seen == {"discriminator": ([32] * 4 + [16]) * rounds, "generator": [16] * 5 * rounds}
    assert method.images_made == 80 * rounds


def test_the_average_begins_late_and_is_what_is_kept() -> None:
    """Until ``ema_from`` it is the weights themselves, then it moves by 1 - ema in every round."""
    method = class_gan(ema=0.75, ema_from=3, augment=None)
    kept: list[Tensor] = []
    live: list[Tensor] = []
    record = method.record

    def recording(**terms: Tensor) -> None:
        kept.append(method.generator.norm.weight.clone())  # type: ignore[union-attr,operator]
        live.append(method.live.norm.weight.detach().clone())  # type: ignore[union-attr,operator]
        record(**terms)

    method.record = recording  # type: ignore[method-assign]
    fitted(method, real_patterns())
    for i in range(3):
        assert torch.equal(kept[i], live[i])
    for i in range(3, 8):
        torch.testing.assert_close(kept[i], 0.75 * kept[i - 1] + 0.25 * live[i])
    assert not torch.equal(kept[-1], live[-1])


def test_the_average_of_weights_under_spectral_norm_keeps_unit_vectors() -> None:
    torch.manual_seed(0)
    one, other = (biggan.BigGanGenerator(num_classes=3, latent=4, channels=1, size=8, widths=8) for _ in range(2))
    other(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    average(one, other, 0.9)
    for name, value in one.state_dict().items():
        new = other.state_dict()[name]
        if name.endswith(("._u", "._v", "num_batches_tracked")):
            assert torch.equal(value, new), name
        else:
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * new)


def test_without_an_average_the_generator_itself_is_kept() -> None:
    method = class_gan(ema=None)
    assert method.learner is method.generator
    assert "live.norm.weight" not in method.state_dict()
    before = method.generator.norm.weight.clone()  # type: ignore[union-attr,operator]
    fitted(method, real_patterns())
    assert not torch.equal(method.generator.norm.weight, before)  # type: ignore[union-attr]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_callbacks_see_every_class_as_the_teacher_or_the_label_says(with_teacher: bool, classifier: nn.Module) -> None:
    method = class_gan(teacher=classifier if with_teacher else None, show_every=1000)
    fitted(method, real_patterns())
    assert method.seen is not None
    assert method.seen.images.shape == (100, 1, 8, 8)
    if with_teacher:
        assert torch.equal(method.seen.teacher, classifier(method.seen.images))
        assert method.teacher is not None
        assert method.teacher.asked == 0
    else:
        assert torch.equal(method.seen.teacher.argmax(1), torch.arange(100) * CLASSES // 100)
    assert method.generator.training, "left in the mode it was in"
