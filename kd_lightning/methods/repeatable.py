"""What a checkpoint has to hold so that a killed fit goes on to the same bits: random states and counts."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from kd_lightning.methods.terms import TermWatch
from kd_lightning.teacher.frozen import FrozenTeacher
from kd_lightning.teacher.query import QueryTeacher

Teacher = FrozenTeacher | QueryTeacher


class Repeatable(L.LightningModule):
    """Noise of its own on every rank, kept in checkpoints with what was counted so far."""

    teacher: Teacher | None

    def __init__(self) -> None:
        super().__init__()
        self.images_made = 0
        self.terms_seen = TermWatch()
        self._rng: torch.Generator | None = None
        self._restored: list[dict[str, Any]] | None = None

    @property
    def rng(self) -> torch.Generator:
        """Noise of this rank alone, on the device; saved in every checkpoint."""
        if self._rng is None:
            # seed_everything gives every rank the same seed: without the rank all would draw the same noise
            self.reseed(torch.initial_seed() % 2**31 + self.global_rank)
        assert self._rng is not None
        return self._rng

    def reseed(self, seed: int) -> None:
        """Begin other noise."""
        self._rng = torch.Generator(self.device).manual_seed(seed)

    def rank_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps of each rank: tensors and plain values, by name."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take back what ``rank_state`` returned when the checkpoint was saved; the tensors are on the CPU."""

    def on_train_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if there was one."""
        if self._restored is not None:
            mine = self._restored[self.global_rank % len(self._restored)]
            self.rng.set_state(mine["rank"])
            torch.set_rng_state(mine["torch"])
            self.load_rank_state(mine.get("own", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state of every rank; a method whose loss is not finite is not worth keeping."""
        self.terms_seen.refuse_nan(type(self).__name__)
        mine = {"rank": self.rng.get_state(), "torch": torch.get_rng_state(), "own": self.rank_state()}
        states: list[Any] = [mine]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rng"] = states
        checkpoint["counts"] = {"made": self.images_made, "asked": self.teacher.asked if self.teacher else 0}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting, and keep the random states until training starts."""
        self._restored = checkpoint["rng"]
        self.images_made = checkpoint["counts"]["made"]
        if self.teacher is not None:
            self.teacher.asked = checkpoint["counts"]["asked"]
