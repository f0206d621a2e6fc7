"""A memory gives out what was put in, the newest of it, and the same after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.errors import ConfigError


def numbered(first: int, n: int) -> torch.Tensor:
    """Rows (n, 2) that tell their number."""
    return torch.arange(first, first + n).float()[:, None].expand(n, 2)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (4, 1, 7), (1,) * 9, (2, 30), (5,)])
def test_a_ring_holds_the_last_rows(sizes: tuple[int, ...]) -> None:
    memory, count = ImageBuffer(5, dtype=torch.float32), 0
    for n in sizes:
        memory.add(numbered(count, n))
        count += n
        held = sorted(memory.rows[:, 0].tolist())
        assert held == list(range(max(0, count - 5), count))
        assert len(memory) == len(held)


def test_without_a_capacity_all_rows_stay_in_order() -> None:
    memory = ImageBuffer(dtype=torch.float32)
    for first, n in ((0, 3), (3, 1), (4, 6), (10, 1)):
        memory.add(numbered(first, n))
    assert memory.rows[:, 0].tolist() == list(range(11))


def test_images_survive_as_bytes() -> None:
    memory = ImageBuffer()
    x = torch.linspace(0, 1, 3 * 8 * 8).view(3, 1, 8, 8)
    memory.add(x)
    assert memory.rows.dtype == torch.uint8
    drawn = memory.sample(200, torch.Generator().manual_seed(0))
    nearest = torch.cdist(drawn.flatten(1), x.flatten(1)).argmin(1)
    assert set(nearest.tolist()) == {0, 1, 2}
    assert (drawn - x[nearest]).abs().max() <= 1 / 510 + 1e-7
    memory.add(torch.tensor([-3.0, 7.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert memory.rows[3:].flatten(1).unique(dim=1).tolist() == [[0], [255]]


@pytest.mark.parametrize("capacity", [4, None])
def test_rows_never_written_are_never_given_out(capacity: int | None) -> None:
    memory = ImageBuffer(capacity, dtype=torch.float32)
    with pytest.raises(ValueError, match="nothing was added"):
        memory.sample(1, torch.Generator())
    for n in range(1, 4):
        memory.add(torch.ones(1, 1))
        assert memory.sample(100, torch.Generator().manual_seed(n)).eq(1).all()
        assert len(memory.rows) == n


@pytest.mark.parametrize("capacity", [4, 100, None])
def test_a_killed_run_goes_on_from_its_last_save(capacity: int | None, tmp_path: Path) -> None:
    """Saves in between, one save more than its checkpoint knows of, and more rows between saves than are held."""
    file = tmp_path / "pool_0.bin"
    memory = ImageBuffer(capacity)
    memory.add(numbered(0, 3) / 255)
    memory.save(file)
    memory.add(numbered(3, 6) / 255)
    state = memory.save(file)
    wanted = memory.rows.clone()
    memory.add(numbered(9, 2) / 255)
    memory.save(file)  # killed before this one's checkpoint was in place

    again = ImageBuffer(capacity)
    again.load(file, state, "cpu")
    assert again.added == 9
    assert torch.equal(again.rows, wanted)
    draws = [m.sample(50, torch.Generator().manual_seed(1)) for m in (again, again)]
    assert torch.equal(
        draws[0],
        wanted.index_select(0, torch.randint(len(wanted), (50,), generator=torch.Generator().manual_seed(1))).float()
        / 255,
    )
    again.add(numbered(50, 1) / 255)
    third = ImageBuffer(capacity)
    third.load(file, again.save(file), "cpu")
    assert torch.equal(third.rows, again.rows)
    assert 50 in third.rows


def test_a_new_run_does_not_inherit_the_rows_of_another(tmp_path: Path) -> None:
    file = tmp_path / "pool_0.bin"
    for start in (0, 100):
        memory = ImageBuffer()
        memory.add(numbered(start, 2) / 255)
        state = memory.save(file)
    again = ImageBuffer()
    again.load(file, state, "cpu")
    assert again.rows[:, 0].tolist() == [100, 101]


def test_an_empty_memory_is_saved_too(tmp_path: Path) -> None:
    state = ImageBuffer().save(tmp_path / "none.bin")
    again = ImageBuffer()
    again.load(tmp_path / "none.bin", state, "cpu")
    assert len(again) == 0


@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_a_file_that_lost_its_rows_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "pool_0.bin"
    memory = ImageBuffer()
    memory.add(numbered(0, 4) / 255)
    state = memory.save(file)
    content = file.read_bytes()
    file.write_bytes({"gone": b"", "short": content[:-1], "changed": b"x" + content[1:]}[damage])
    if damage == "gone":
        file.unlink()
    with pytest.raises(ConfigError, match=r"no longer holds the 4 rows .* artifacts\.reuse=false"):
        ImageBuffer().load(file, state, "cpu")


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ImageBuffer(0)
