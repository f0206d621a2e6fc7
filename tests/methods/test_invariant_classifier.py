"""An invariant classifier learns three causes apart, from real images and a folder of counterfactual ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from bars import fitted
from PIL import Image
from torch import Tensor, nn
from toy import context, sgd, trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.module import Images
from kd_lightning.errors import DataError
from kd_lightning.methods.counterfactual.invariant_ensemble import InvariantClassifier
from kd_lightning.networks.classifiers.invariant_ensemble import InvariantEnsemble
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.real_and_counterfactual import PairedLoader, RealAndCounterfactual

CLASSES, SIZE = 3, 8


class Small(InvariantEnsemble):
    """The same heads on a backbone for 8x8, with a batch norm."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.m_shape, self.m_texture, self.m_bg = (
            nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)) for _ in range(3)
        )


def image(shape: int, texture: int, bg: int) -> np.ndarray:
    """Each cause is the level of a colour: what a class looks like is plain to see."""
    return np.tile(np.array([shape, texture, bg], dtype=np.uint8) * 100, (SIZE, SIZE, 1))


def causes() -> list[tuple[int, int, int]]:
    return [(s, t, b) for s in range(CLASSES) for t in range(CLASSES) for b in range(CLASSES)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What CGN writes, with a header for every time it was called."""
    header = "im_name,shape_cls,texture_cls,bg_cls\n"
    (tmp_path / "ims").mkdir()
    lines = []
    for i, own in enumerate(causes()):
        name = f"run_{i:07d}_x_gen.png"
        Image.fromarray(image(*own)).save(tmp_path / "ims" / name)
        lines += [f"{name},{own[0]},{own[1]},{own[2]}\n", *([header] if i == 7 else [])]
    (tmp_path / "labels.csv").write_text(header + "".join(lines))
    return tmp_path


def real(n: int = 60) -> Any:
    """A context whose real images have all three causes in common."""
    y = torch.arange(n) % CLASSES
    x = torch.stack([torch.from_numpy(image(k, k, k)).permute(2, 0, 1) for k in y.tolist()])
    return context(dataset=Dataset("toy", list("abc"), Split(x, y), None, None, "none", "none"))


def loader(folder: Path, **settings: Any) -> PairedLoader:
    return RealAndCounterfactual(**{"folder": str(folder), "batch_size": 12} | settings).prepare(real())


def classifier(**settings: Any) -> InvariantClassifier:
    torch.manual_seed(0)
    student = Normalized(Small(), mean=[0.4, 0.4, 0.4], std=[0.3, 0.3, 0.3])
    return InvariantClassifier(
        **{"optimizer": partial(sgd, lr=0.1)} | settings, student=student, teacher=None, task=Classification(CLASSES)
    )


@torch.no_grad()
def accuracies(method: InvariantClassifier) -> list[float]:
    """Of each head for its cause, on counterfactual images."""
    every = torch.tensor(causes())
    x = torch.stack([torch.from_numpy(image(*own)).permute(2, 0, 1) for own in causes()]).float() / 255
    method.eval()
    return [float((head.argmax(1) == y).float().mean()) for head, y in zip(method.heads(x), every.T, strict=True)]


def test_each_head_learns_its_cause(folder: Path) -> None:
    method = fitted(classifier(), loader(folder), epochs=25)  # type: ignore[assignment]
    assert isinstance(method, InvariantClassifier)
    assert min(accuracies(method)) > 0.9


def test_none_does_from_real_images_alone(folder: Path) -> None:
    method = fitted(classifier(), loader(folder, cf_ratio=0), epochs=25)
    assert isinstance(method, InvariantClassifier)
    assert max(accuracies(method)) < 0.85
    assert {k for k in method.latest if k.startswith("train/")} == {"train/real"}


def test_batch_norms_stay_in_eval_mode(folder: Path) -> None:
    method = classifier()
    norm = method.student.net.backbone[1]  # type: ignore[union-attr,index]
    before = norm.running_mean.clone()
    fitted(method, loader(folder))
    method.train()
    assert method.student.training
    assert not norm.training
    assert torch.equal(norm.running_mean, before)


def test_one_step_for_both_batches(folder: Path) -> None:
    """The gradient is that of CE(mean of heads, y) on real images, plus CE of each head on counterfactual ones."""
    steps: list[dict[str, Tensor]] = []
    method = classifier()
    build = method.make_optimizer

    def watched(parameters: Any) -> Any:
        optimizer = build(parameters)
        optimizer.register_step_pre_hook(
            lambda *_: steps.append({k: p.grad.clone() for k, p in method.student.named_parameters()})  # type: ignore[union-attr]
        )
        return optimizer

    method.make_optimizer = watched
    start = {k: v.clone() for k, v in method.student.state_dict().items()}
    fitted(method, loader(folder))
    assert len(steps) == 5

    fresh = classifier()
    fresh.student.load_state_dict(start)
    batch = next(iter(loader(folder)))
    heads = fresh.train().heads(batch.made)
    loss = nn.functional.cross_entropy(fresh.student(batch.x), batch.y)
    for head, y in zip(heads, batch.causes.T, strict=True):
        loss = loss + nn.functional.cross_entropy(head, y)
    loss.backward()
    for name, p in fresh.student.named_parameters():
        torch.testing.assert_close(steps[0][name], p.grad)


def test_another_student_is_refused() -> None:
    settings: Any = {"optimizer": sgd, "teacher": None, "task": Classification(CLASSES)}
    with pytest.raises(ValueError, match="got Linear: use student=invariant_ensemble"):
        InvariantClassifier(student=Normalized(nn.Linear(1, 1), mean=[0.5], std=[0.5]), **settings)


def test_batches_have_counterfactual_images_with_their_causes(folder: Path) -> None:
    batches = list(loader(folder, cf_ratio=1.5))
    assert [(len(b.x), len(b.made)) for b in batches] == [(12, 18)] * 5
    for batch in batches:
        seen = (batch.made[:, :, 0, 0] * 255 / 100).round().long()
        assert torch.equal(seen, batch.causes)
        assert batch.y.tolist() == (batch.x[:, 0, 0, 0] * 255 / 100).round().long().tolist()
    assert len({tuple(row) for b in batches for row in b.causes.tolist()}) > 20


def test_augmentation_is_of_both(folder: Path) -> None:
    dark = lambda x, rng: 0 * x  # noqa: E731
    batch = next(iter(loader(folder, augment=[dark])))
    assert not batch.x.any()
    assert not batch.made.any()


def test_other_epochs_and_ranks_draw_others(folder: Path) -> None:
    def drawn(epoch: int = 0, rank: int = 0) -> Tensor:
        pairs = loader(folder)
        pairs.set_epoch(epoch)
        pairs.real.rank = rank
        return next(iter(pairs)).causes

    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(epoch=1))
    assert not torch.equal(drawn(), drawn(rank=1))


def test_a_killed_fit_goes_on_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    class Killed(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 3:
                trainer.save_checkpoint(tmp_path / "killed.ckpt")

    whole, resumed = classifier().train(), classifier().train()
    trainer(2, callbacks=[Killed()]).fit(whole, Images(loader(folder), None))
    trainer(2).fit(resumed, Images(loader(folder), None), ckpt_path=tmp_path / "killed.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "there is no .*labels.csv"),
        ("im_name,shape_cls\na,1\n", "expected a header im_name,shape_cls,texture_cls,bg_cls"),
        ("im_name,shape_cls,texture_cls,bg_cls\n", "and a row for each image"),
        ("im_name,shape_cls,texture_cls,bg_cls\nno.jpg,1,1,1\n", "names no.jpg, which is not below"),
        ("im_name,shape_cls,texture_cls,bg_cls\nrun_0000000_x_gen.png,1,3,1\n", "classes 1, 3, 1, expected three of 0"),
        ("im_name,shape_cls,texture_cls,bg_cls\nrun_0000000_x_gen.png,1,x,1\n", "classes 1, x, 1, expected three of 0"),
    ],
)
def test_folders_that_say_nothing(table: str | None, words: str, folder: Path) -> None:
    (folder / "labels.csv").unlink()
    if table is not None:
        (folder / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=words):
        loader(folder)
