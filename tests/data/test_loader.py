"""The loader: order, sharding over ranks, and going on exactly where a killed run stopped."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kd_lightning.data.augment import HorizontalFlip, RandomCrop
from kd_lightning.data.batches import Batch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.errors import ConfigError, DataError


def loader(n=22, *, batch_size=4, shuffle=True, augment=True, **options):
    images = torch.arange(n * 27).remainder(256).to(torch.uint8).view(n, 3, 3, 3)
    parts = (RandomCrop(1), HorizontalFlip()) if augment else ()
    return TensorLoader(images, torch.arange(n), batch_size=batch_size, shuffle=shuffle, augment=parts, **options)


def seen(batches):
    return [i for batch in batches for i in batch.index.tolist()]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.x, y.x) and torch.equal(x.index, y.index) for x, y in zip(a, b, strict=True)
    )


def test_a_batch_is_float_in_0_1_with_its_labels_answers_and_positions():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    answers = torch.tensor([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]])
    labels = torch.tensor([2, 0, 1], dtype=torch.uint8)
    one = next(iter(TensorLoader(images, labels, answers=answers, batch_size=3, shuffle=True, seed=1)))
    assert isinstance(one, Batch)
    order = one.index
    assert sorted(order.tolist()) == [0, 1, 2]
    assert torch.equal(one.x.flatten(), torch.tensor([0.0, 0.2, 1.0])[order])
    assert one.y.dtype == torch.int64
    assert torch.equal(one.y, labels.long()[order])
    assert torch.equal(one.t, answers[order])
    bare = next(iter(TensorLoader(images, batch_size=2, shuffle=False)))
    assert (bare.y, bare.t) == (None, None)
    targets = torch.rand(3)
    assert torch.equal(next(iter(TensorLoader(images, targets, batch_size=3, shuffle=False))).y, targets)


def test_epochs_differ_and_follow_the_seed():
    one, again, other = loader(seed=5), loader(seed=5), loader(seed=6)
    first, second = list(one), list(one)
    assert sorted(seen(first)) == sorted(seen(second)) == list(range(22))
    assert seen(first) != seen(second)
    assert same(first, list(again))
    assert same(second, list(again))
    assert seen(first) != seen(list(other))


def test_augmentation_differs_between_epochs_even_in_the_same_order():
    one = loader(shuffle=False)
    first, second = list(one), list(one)
    assert seen(first) == seen(second) == list(range(22))
    assert not same(first, second)


@pytest.mark.parametrize(("drop_last", "batches", "images"), [(False, 6, 22), (True, 5, 20)])
def test_length_and_the_last_batch(drop_last, batches, images):
    one = loader(drop_last=drop_last)
    drawn = list(one)
    assert len(one) == len(drawn) == batches
    assert len(seen(drawn)) == len(set(seen(drawn))) == images


@pytest.mark.parametrize("world", [1, 2, 3, 5, 30])
def test_training_ranks_cover_the_set_with_equal_lengths(world):
    ranks = [loader(rank=r, world=world) for r in range(world)]
    shares = [seen(rank) for rank in ranks]
    assert len({len(share) for share in shares}) == 1
    assert {len(rank) for rank in ranks} == {-(-len(shares[0]) // 4)}
    assert set().union(*shares) == set(range(22))
    everything = torch.tensor([i for share in shares for i in share])
    assert len(everything) < 22 + world
    assert everything.bincount().max() <= -(-len(everything) // 22)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_training_ranks_that_drop_see_no_image_twice(world):
    ranks = [loader(rank=r, world=world, drop_last=True, batch_size=2) for r in range(world)]
    shares = [seen(rank) for rank in ranks]
    assert {len(share) for share in shares} == {22 // world // 2 * 2}
    assert len(set().union(*shares)) == sum(map(len, shares))


def test_evaluation_ranks_see_each_image_once():
    ranks = [loader(rank=r, world=3, shuffle=False) for r in range(3)]
    assert [seen(rank) for rank in ranks] == [list(range(r, 22, 3)) for r in range(3)]
    assert [len(rank) for rank in ranks] == [2, 2, 2]


def test_ranks_and_batches_augment_differently():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8).repeat(128, 1, 1, 1)
    options = {"batch_size": 32, "shuffle": True, "augment": [RandomCrop(4)], "world": 2}
    batches = [batch for rank in (0, 1) for batch in TensorLoader(images, rank=rank, **options)]
    assert len({batch.x.numpy().tobytes() for batch in batches}) == 4


@pytest.mark.parametrize("k", [0, 1, 4, 6])
def test_a_cut_epoch_goes_on_with_exactly_the_remaining_batches(k, tmp_path):
    whole = loader(seed=3)
    reference = [list(whole) for _ in range(3)]
    cut = loader(seed=3)
    list(cut)
    iterator = iter(cut)
    drawn = [next(iterator) for _ in range(k)]
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    fresh = loader(seed=99)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    if k < 6:
        assert same(drawn + list(fresh), reference[1])
    assert same(list(fresh), reference[2])


def test_state_of_rank_0_is_right_for_every_rank():
    reference = list(loader(rank=1, world=2))
    first = loader(rank=0, world=2)
    next(iter(first))
    second = loader(rank=1, world=2)
    second.load_state_dict(first.state_dict())
    assert same(list(second), reference[1:])


def test_iter_restarts_after_an_unfinished_epoch_and_twice_is_once():
    reference = loader()
    epochs = [list(reference) for _ in range(3)]
    one = loader()
    iter(one)
    assert same([next(iter(one))], epochs[0][:1])
    iter(one)
    assert same(list(one), epochs[1])
    next(iter(one))
    fresh = loader()
    fresh.load_state_dict(one.state_dict())
    iter(fresh)
    assert same(list(fresh), epochs[2][1:])


def test_other_batches_than_the_saved_ones_are_refused():
    state = loader().state_dict()
    with pytest.raises(ConfigError, match=r"'batch_size': 4.*'batch_size': 8.*artifacts\.reuse=false"):
        loader(batch_size=8).load_state_dict(state)


def test_no_images_or_no_batch_is_refused():
    with pytest.raises(DataError, match="empty"):
        TensorLoader(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), batch_size=1, shuffle=False)
    with pytest.raises(ConfigError, match=r"a batch of 12 on each of 2 device\(s\) .* 22 images"):
        loader(batch_size=12, world=2, drop_last=True)
    with pytest.raises(ValueError, match="uint8"):
        TensorLoader(torch.zeros(2, 1, 2, 2), batch_size=1, shuffle=False)
    with pytest.raises(ValueError, match="2 images, but 3"):
        TensorLoader(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), batch_size=1, shuffle=False)


class Recorder(LightningModule):
    """Trains one weight on whatever comes and remembers every batch."""

    def __init__(self, die_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches, self.die_at = [], die_at

    def training_step(self, batch, batch_idx):
        if len(self.batches) == self.die_at:
            raise RuntimeError("killed")
        self.batches.append(batch)
        return (batch.x.mean() - self.weight).square()

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.weight.detach(), batch_size=len(batch.x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Keep(Callback):
    """Saves after a number of batches, in the hook that is named."""

    def __init__(self, path, after, hook):
        self.path, self.after = path, after
        setattr(self, hook, self.save)

    def save(self, trainer, module, *_):
        if len(module.batches) == self.after:
            trainer.save_checkpoint(self.path)


def fit(module, tmp_path, *callbacks, seed=0, limit=1.0, **options):
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        limit_train_batches=limit,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader(seed=seed), loader(shuffle=False, augment=False), **options)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("after", "hook"),
    [
        (1, "on_train_batch_end"),
        (9, "on_train_batch_end"),
        (12, "on_train_batch_end"),
        (6, "on_train_epoch_end"),
        (12, "on_validation_end"),
        (12, "on_train_epoch_end"),
    ],
)
def test_a_killed_lightning_run_resumes_with_equal_batches(tmp_path, after, hook):
    whole = Recorder()
    fit(whole, tmp_path)
    assert len(whole.batches) == 18
    assert len({tuple(seen(whole.batches[i : i + 6])) for i in (0, 6, 12)}) == 3
    killed = Recorder(die_at=min(after + 2, 17))
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed, tmp_path, Keep(tmp_path / "last.ckpt", after, hook))
    resumed = Recorder()
    fit(resumed, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert same(killed.batches[:after] + resumed.batches, whole.batches)
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("after", "hook"), [(6, "on_train_epoch_end"), (6, "on_validation_end"), (5, "on_train_batch_end")]
)
def test_epochs_cut_short_by_a_limit_resume_alike(tmp_path, after, hook):
    whole, killed, resumed = Recorder(), Recorder(die_at=8), Recorder()
    fit(whole, tmp_path, limit=3)
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed, tmp_path, Keep(tmp_path / "last.ckpt", after, hook), limit=3)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "last.ckpt", limit=3)
    assert len(whole.batches) == 9
    assert same(killed.batches[:after] + resumed.batches, whole.batches)


def test_a_set_passed_several_times_in_an_epoch_repeats_no_order():
    one = loader()
    drawn = {}
    for epoch in range(2):
        one.set_epoch(epoch)
        drawn |= {(epoch, turn): tuple(seen(one)) for turn in range(3)}
    assert len(set(drawn.values())) == 6
    one.set_epoch(1)
    assert tuple(seen(one)) not in drawn.values()
    one.set_epoch(0)
    assert tuple(seen(one)) == drawn[0, 0]
