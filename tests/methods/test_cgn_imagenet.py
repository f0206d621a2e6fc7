"""CGN for ImageNet on a picture book: mechanisms take a frozen generator's images apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from bars import fitted
from safetensors.torch import save_file
from torch import Tensor, nn
from toy import adam, trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.module import Images
from kd_lightning.losses.counterfactual import binary_entropy
from kd_lightning.methods.counterfactual.cgn_imagenet import CgnImageNet
from kd_lightning.networks.generators import biggan_deep
from kd_lightning.networks.generators.cgn_imagenet import MECHANISMS, ImageNetCgn
from kd_lightning.networks.generators.u2net import U2Net
from kd_lightning.networks.pretrained import biggan_deep_names
from kd_lightning.sources.data_free import Rounds

CLASSES, LATENT, SIZE = 4, 3, 8
pytestmark = pytest.mark.filterwarnings("ignore:method.(biggan|saliency)=null")


class Pages(nn.Module):
    """An image for each class; a latent changes its brightness a little."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.pages = nn.Parameter(start.clone())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.pages[y] + 0.1 * z[:, :1, None, None])


class Bright(nn.Module):
    """Saliency: what is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean(1, keepdim=True))


class Levels(nn.Module):
    """Feature maps of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = torch.relu(self.a(x))
        return [first, torch.relu(self.b(first))]


def book() -> tuple[Tensor, Tensor]:
    """Pages (CLASSES, 3, SIZE, SIZE) with a bright square each on dark ground, before the sigmoid, and its place."""
    place = torch.zeros(CLASSES, 1, SIZE, SIZE, dtype=torch.bool)
    for k in range(CLASSES):
        place[k, 0, k : k + 4, 4 - k : 8 - k] = True
    return torch.where(place, 2.5, -4.0).expand(-1, 3, -1, -1), place


def cgn(lr: float = 0.1, **settings: Any) -> CgnImageNet:
    torch.manual_seed(0)
    blank = torch.zeros(CLASSES, 3, SIZE, SIZE)
    small: dict[str, Any] = {"latent": LATENT, "batch_size": 4, "accumulate": 1, "variant": "paper", "shown": 8}
    small |= {"l1": 100.0, "binary": 5.0, "share": 5.0, "bg": 500.0, "perc": (0, 1.0), "text": (20.0, 0)}
    small |= {"patch": 3, "resize": SIZE, "best": 6, "grid": 2, "lr_shape": lr, "lr_text": lr, "lr_bg": lr}
    return CgnImageNet(
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(CLASSES),
        generator=ImageNetCgn(f_shape=Pages(blank), f_text=Pages(blank), f_bg=Pages(blank), u2net=Bright()),
        pseudo=Pages(book()[0]),
        optimizer=adam,
        features=Levels(),
        **small | {"show_every": 50} | settings,
    )


@torch.no_grad()
def apart(method: CgnImageNet) -> tuple[float, float, float]:
    """Distance from the book, entropy of the masks in bits, and the share of their pixels on the right side."""
    net, z, y = method.generator.eval(), torch.zeros(CLASSES, LATENT), torch.arange(CLASSES)
    mask = net.draw("shape", z, y)
    right = ((mask > 0.5) == book()[1]).float().mean()
    return float((net(z, y) - method.pseudo.net(z, y)).abs().mean()), float(binary_entropy(mask)), float(right)


def test_the_mechanisms_take_the_images_apart() -> None:
    far, entropy, right = apart(fitted(cgn(), Rounds(120)))  # type: ignore[arg-type]
    assert far < 0.1
    assert entropy < 0.2
    assert right > 0.95


def test_they_do_not_without_the_losses_that_keep_them_apart() -> None:
    """The image is there, and its mask means nothing."""
    far, _, right = apart(fitted(cgn(bg=0.0, text=(0, 0)), Rounds(120)))  # type: ignore[arg-type]
    assert far < 0.1
    assert right < 0.8


def test_they_do_not_where_they_stand_still() -> None:
    far, entropy, _ = apart(fitted(cgn(lr=0.0), Rounds(5)))  # type: ignore[arg-type]
    assert far > 0.2
    assert entropy > 0.9


OFF: dict[str, Any] = {"l1": 0, "binary": 0, "share": 0, "bg": 0, "perc": (0, 0), "text": (0, 0)}
PULLS: dict[str, tuple[Any, set[str]]] = {
    "l1": (100.0, set(MECHANISMS)),
    "perc": ((1.0, 1.0), set(MECHANISMS)),
    "binary": (1.0, {"shape"}),
    "share": (1.0, {"shape"}),
    "text": ((1.0, 1.0), {"fg"}),
    "bg": (1.0, {"bg"}),
}


@pytest.mark.parametrize("loss", PULLS)
def test_whom_a_loss_pulls(loss: str) -> None:
    """The texture's, above all, not the mask by which its patches are chosen."""
    weight, pulled = PULLS[loss]
    method = cgn(**OFF | {loss: weight, "accumulate": 10, "tau": 0.05})
    with torch.no_grad():
        for net, level in ((method.generator.f_shape, -5), (method.generator.f_text, 0), (method.generator.f_bg, 0)):
            net.pages += torch.randn(CLASSES, 3, SIZE, SIZE) + level  # type: ignore[operator]
    seen = gradients(method, rounds=1)[0]
    names = {"shape": "f_shape.pages", "fg": "f_text.pages", "bg": "f_bg.pages"}
    assert {im for im, name in names.items() if name in seen and seen[name].any()} == pulled
    assert set(seen) <= set(names.values())


def gradients(method: CgnImageNet, rounds: int) -> list[dict[str, Tensor]]:
    """What the optimiser is given at each step."""
    seen: list[dict[str, Tensor]] = []
    build = method.make_optimizer

    def watched(groups: Any) -> Any:
        optimizer = build(groups)

        def note(*_: Any) -> None:
            named = method.generator.named_parameters()
            seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

        optimizer.register_step_pre_hook(note)
        return optimizer

    method.make_optimizer = watched
    fitted(method, Rounds(rounds))
    return seen


def test_gradients_of_several_forwards_make_a_step() -> None:
    """Summed, and the last round steps with what there is."""
    single = gradients(cgn(lr=0.0), rounds=5)
    summed = gradients(cgn(lr=0.0, accumulate=2), rounds=5)
    assert (len(single), len(summed)) == (5, 3)
    for step, forwards in zip(summed, (single[:2], single[2:4], single[4:]), strict=True):
        for name, grad in step.items():
            torch.testing.assert_close(grad, torch.stack([g[name] for g in forwards]).sum(0))


def test_a_group_for_each_mechanism() -> None:
    method = cgn(lr_shape=1.0, lr_text=2.0, lr_bg=3.0)
    groups = method.configure_optimizers()[0][0].param_groups
    nets = (method.generator.f_shape, method.generator.f_text, method.generator.f_bg)
    assert [group["lr"] for group in groups] == [1.0, 2.0, 3.0]
    assert all(group["params"][0] is net.pages for group, net in zip(groups, nets, strict=True))


def test_what_is_frozen_stays_so_and_out_of_checkpoints() -> None:
    method = cgn()
    before = {k: v.clone() for k, v in frozen_state(method)}
    fitted(method, Rounds(3))
    method.train()
    assert method.generator.f_shape.training
    for net in (method.generator.u2net, method.pseudo.net, method.features.net):  # type: ignore[union-attr]
        assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in frozen_state(method))
    assert not any("pseudo" in name or "features" in name for name in method.state_dict())
    assert {k.partition(".")[0] for k in method.generator.state_dict()} == {"f_shape", "f_text", "f_bg", "u2net"}


def frozen_state(method: CgnImageNet) -> Iterator[tuple[str, Tensor]]:
    for net in (method.generator.u2net, method.pseudo.net, method.features.net):  # type: ignore[union-attr]
        yield from ((f"{type(net).__name__}.{k}", v) for k, v in net.state_dict().items())


def test_a_fit_goes_on_with_the_gradients_it_had_added_up(tmp_path: Path) -> None:
    class Killed(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 3:
                trainer.save_checkpoint(tmp_path / "killed.ckpt")

    whole = cgn(accumulate=2)
    whole.train()
    trainer(1, callbacks=[Killed()]).fit(whole, Images(Rounds(6), None))
    resumed = cgn(accumulate=2)
    resumed.train()
    trainer(1).fit(resumed, Images(Rounds(6), None), ckpt_path=tmp_path / "killed.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_latents_and_classes_of_the_paper_and_of_the_code() -> None:
    paper, code = cgn(), cgn(variant="code", truncation=0.5)
    assert float(paper.latents(2000).abs().max()) > 2.5
    assert 0.9 < float(code.latents(2000).abs().max()) <= 1
    assert len(paper.classes(200).unique()) == CLASSES
    assert len(code.classes(200).unique()) == 1
    assert len({int(code.classes(4)[0]) for _ in range(50)}) == CLASSES
    with pytest.raises(ValueError, match="expected paper or code"):
        cgn(variant="both")


def test_the_same_latents_and_class_for_what_is_imitated_and_the_mechanisms() -> None:
    method = cgn()
    seen: list[tuple[Tensor, Tensor]] = []
    nets = (method.pseudo.net, method.generator.f_shape, method.generator.f_text, method.generator.f_bg)
    handles = [net.register_forward_pre_hook(lambda _, args: seen.append(args)) for net in nets]
    fitted(method, Rounds(2))
    for handle in handles:
        handle.remove()
    for z, y in seen[:4]:
        assert torch.equal(z, seen[0][0])
        assert torch.equal(y, seen[0][1])


def test_l1_is_taken_of_tanh_images() -> None:
    """|delta| = 0.02 of [-1, 1] costs 2, and the pixels here are half as far apart."""
    method = cgn(**OFF | {"l1": 100.0})
    logit = lambda p: torch.full((CLASSES, 3, SIZE, SIZE), p).logit()  # noqa: E731
    with torch.no_grad():
        for net, p in ((method.pseudo.net, 0.5), (method.generator.f_text, 0.51), (method.generator.f_bg, 0.51)):
            net.pages.copy_(logit(p))  # type: ignore[union-attr,operator]
    method.noise = lambda *shape: torch.zeros(shape)  # type: ignore[method-assign]
    fitted(method, Rounds(1))
    assert method.terms_seen is not None
    assert method.latest["train/l1"] == pytest.approx(2, rel=1e-3)


def test_callbacks_see_composites_of_all_classes() -> None:
    method = cgn(show_every=1000)
    fitted(method, Rounds(2))
    assert method.seen is not None
    assert method.seen.images.shape == (8, 3, SIZE, SIZE)
    assert method.seen.teacher.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert method.generator.training, "left in the mode it was in"


def test_without_vgg16_its_losses_are_off() -> None:
    settings: dict[str, Any] = {"student": nn.Linear(1, 1), "teacher": None, "task": Classification(CLASSES)}
    pages = Pages(book()[0])
    generator = ImageNetCgn(f_shape=pages, f_text=Pages(book()[0]), f_bg=Pages(book()[0]), u2net=Bright())
    with pytest.warns(UserWarning, match=r"method.features.weights=null: the perceptual and the texture loss"):
        method = CgnImageNet(
            generator=generator, pseudo=Pages(book()[0]), optimizer=adam, latent=LATENT, shown=4, **settings
        )
    fitted(method, Rounds(1))
    assert {k for k in method.latest if k.startswith("train/")} == {
        f"train/{k}" for k in ("l1", "binary", "share", "bg", "mask")
    }


def deep() -> biggan_deep.BigGanDeepGenerator:
    layers = [[0, 16, 16], [1, 16, 8], [1, 8, 4], [1, 4, 2], [0, 2, 1]]
    return biggan_deep.BigGanDeepGenerator(size=32, num_classes=10, latent=16, ch=8, layers=layers, attention=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:method.saliency=null")
def test_small_copies_of_the_papers_networks_take_a_step(tmp_path: Path) -> None:
    """All four generators begin at the published weights; every loss is finite; only three learn."""
    torch.manual_seed(0)
    published = deep()
    names = biggan_deep_names(published)
    save_file({names[k]: v.clone() for k, v in published.state_dict().items()}, tmp_path / "biggan.safetensors")
    generator = ImageNetCgn(f_shape=deep(), f_text=deep(), f_bg=deep(), u2net=U2Net(mids=4, outs=8), truncation=1.0)
    method = CgnImageNet(
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(10),
        generator=generator,
        pseudo=deep(),
        biggan=str(tmp_path / "biggan.safetensors"),
        optimizer=adam,
        features=Levels(),
        latent=16,
        accumulate=2,
        perc=(4, 4),
        text=(0, 5),
        patch=5,
        resize=32,
        grid=3,
        shown=2,
    )
    for net in (method.pseudo.net, generator.f_shape, generator.f_text, generator.f_bg):
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in published.state_dict().items())  # type: ignore[union-attr]
    (step,) = gradients(method, rounds=2)
    assert all(torch.isfinite(torch.tensor(v)) for v in method.latest.values())
    assert {k.partition(".")[0] for k in step} == {"f_shape", "f_text", "f_bg"}
    for net in (generator.f_shape, generator.f_text, generator.f_bg):
        assert not torch.equal(net.conv_to_rgb.bias, published.conv_to_rgb.bias)  # type: ignore[union-attr,arg-type]
    assert torch.equal(method.pseudo.net.conv_to_rgb.bias, published.conv_to_rgb.bias)  # type: ignore[union-attr,arg-type]
