"""Random numbers of each rank and their state in checkpoints, so that a killed fit resumes bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from kd_lightning.distributed import collectives
from kd_lightning.methods.base.loss_monitor import LossMonitor
from kd_lightning.methods.base.protocols import Teacher, WhiteTeacher


class ResumableModule(L.LightningModule):
    """A module with random numbers of its own on every rank; checkpoints hold their state and the counts."""

    teacher: Teacher | None
    global_batch_losses = False
    """Whether losses over a batch are computed over the concatenated batches of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.images_made = 0
        self.terms_seen = LossMonitor()
        self._rng: torch.Generator | None = None
        self._restored: list[dict[str, Any]] | None = None

    @property
    def white(self) -> WhiteTeacher:
        """The teacher as a white-box teacher, for methods that need its gradients."""
        return cast(WhiteTeacher, self.teacher)

    @property
    def rng(self) -> torch.Generator:
        """Generator of this rank only, on the device; its state is saved in every checkpoint."""
        if self._rng is None:
            # seed_everything gives every rank the same seed: without the rank all would draw the same noise
            self.reseed(torch.initial_seed() % 2**31 + self.global_rank)
        assert self._rng is not None
        return self._rng

    def reseed(self, seed: int) -> None:
        """Replace the generator by one with another seed."""
        self._rng = torch.Generator(self.device).manual_seed(seed)

    @property
    def rounds_done(self) -> int:
        """Rounds finished since the start of the fit, including those before a resume."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def noise(self, *shape: int) -> Tensor:
        """Standard normal noise of this rank only, on the device."""
        return torch.randn(*shape, device=self.device, generator=self.rng)

    def common_rng(self) -> torch.Generator:
        """Generator on the CPU, the same on all ranks and another in every round."""
        words = np.random.SeedSequence((self.rng.initial_seed() - collectives.rank(), self.rounds_done))
        return torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) of all ranks, for a loss that is not a mean over samples; gradients reach only this rank's.

        A scalar becomes (ranks,). With one rank, or ``trainer.global_batch_losses=false``, ``rows`` itself.
        """
        return collectives.gathered(rows) if self.global_batch_losses else rows

    def share_buffers(self) -> None:
        """Average batch-norm statistics over ranks, which drift apart under manual optimisation."""
        buffers = list(self._drifting().values())
        if collectives.world() > 1 and buffers:
            shared = collectives.mean(torch.cat([buffer.flatten() for buffer in buffers]))
            for buffer, values in zip(buffers, shared.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))

    def _drifting(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}

    def rank_state(self) -> dict[str, Any]:
        """State of each rank for checkpoints, such as a pool of images: tensors and plain values, by name."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore what ``rank_state`` returned when the checkpoint was saved; the tensors are on the CPU."""

    def beside(self, name: str) -> Path:
        """This rank's file for rows that are too large for checkpoints."""
        return Path(self.trainer.default_root_dir) / f"{name}_{self.global_rank}.bin"

    def on_train_start(self) -> None:
        """Restore the state of this rank if the fit resumes from a checkpoint."""
        if self._restored is None and collectives.rank():
            torch.manual_seed(self.rng.initial_seed())  # dropout's noise
        self.go_on()

    def go_on(self) -> None:
        """Restore the state of this rank; called directly for a fit that had ended, which does not start again."""
        if self._restored is None:
            return
        mine, self._restored = self._restored[collectives.rank()], None
        self.rng.set_state(mine["rank"])
        torch.set_rng_state(mine["torch"])
        for name, buffer in self._drifting().items():
            if name in mine["buffers"]:
                buffer.copy_(mine["buffers"][name])
        self.load_rank_state(mine["own"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of every rank; raises TrainingError if a loss was not finite."""
        self.terms_seen.refuse_nan(type(self).__name__)
        mine = {"rank": self.rng.get_state(), "torch": torch.get_rng_state(), "own": self.rank_state()}
        mine["buffers"] = self._drifting() if collectives.world() > 1 else {}
        checkpoint["rng"] = collectives.of_each(mine)
        checkpoint["counts"] = {"made": self.images_made, "asked": self.teacher.asked if self.teacher else 0}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts, and keep the random states until training starts."""
        self._restored = checkpoint["rng"]
        self.images_made = checkpoint["counts"]["made"]
        if self.teacher is not None:
            self.teacher.asked = checkpoint["counts"]["asked"]
