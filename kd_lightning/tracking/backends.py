"""W&B, TensorBoard and other Lightning loggers: opened, fed and closed here, so that methods name none of them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from kd_lightning.core.extras import install
from kd_lightning.distributed import collectives
from kd_lightning.errors import UserError

WRITTEN = ("wandb", "tensorboard")
"""Folders that loggers write to."""
LINKS = shutil.ignore_patterns("latest-run", "debug*.log")
"""W&B's links in them."""
MOST_CLASSES = 100
"""Confusion matrices of more classes are logged as pictures only: W&B's chart needs a row for every cell."""


@dataclass
class Dashboards:
    """The dashboards that one fit of a run logs to; there may be none.

    Args:
        loggers: of Lightning.
        prefix: of every key, so that stages and student have separate curves.
    """

    loggers: Sequence[Any] = ()
    prefix: str = ""

    def of(self, phase: str) -> Dashboards:
        """The same dashboards for the fit named ``phase``, whose name becomes the prefix unless it is ``student``."""
        return self if phase == "student" else Dashboards(self.loggers, f"{phase}/")

    @rank_zero_only
    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        """Add values to the curves; keys without ``/``, such as ``seconds``, get no prefix."""
        named = {k if "/" not in k else self.prefix + k: v for k, v in values.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=step)

    @rank_zero_only
    def images(self, key: str, images: Tensor, captions: Sequence[str], step: int) -> None:
        """Show uint8 images (N, C, H, W), each with its caption where the dashboard has captions."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                pictures = [image.permute(1, 2, 0).numpy().squeeze() for image in images]
                logger.log_image(self.prefix + key, pictures, step=step, caption=list(captions))
            elif hasattr(board := getattr(logger, "experiment", None), "add_images"):
                board.add_images(self.prefix + key, images, step)  # type: ignore[union-attr]

    @rank_zero_only
    def picture(self, key: str, picture: Image.Image, step: int | None) -> None:
        """Show one picture."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(self.prefix + key, [picture], step=step)
            elif hasattr(board := getattr(logger, "experiment", None), "add_image"):
                pixels = np.asarray(picture.convert("RGB"))
                board.add_image(self.prefix + key, pixels, step, dataformats="HWC")  # type: ignore[union-attr]

    @rank_zero_only
    def masks(
        self, key: str, picture: Image.Image, images: Tensor, masks: Mapping[str, Tensor], classes: Sequence[str]
    ) -> None:
        """Show label maps over images: their picture, and in W&B images whose masks can be switched on and off.

        Args:
            key: name on the dashboard.
            picture: of all of them.
            images: uint8 (N, C, H, W).
            masks: name -> maps (N, H, W).
            classes: names of the classes.
        """
        self.picture(key, picture, None)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                labels = dict(enumerate(classes))
                shown = [
                    wandb.Image(
                        image.permute(1, 2, 0).numpy().squeeze(),
                        masks={name: {"mask_data": m[i].numpy(), "class_labels": labels} for name, m in masks.items()},
                    )
                    for i, image in enumerate(images)
                ]
                logger.experiment.log({f"{key}_masks": shown})

    @rank_zero_only
    def class_counts(self, key: str, counts: Tensor, step: int) -> None:
        """Log class counts, int64 (K,), as a histogram that dashboards draw over time."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                edges = np.arange(len(counts) + 1) - 0.5
                histogram = wandb.Histogram(np_histogram=(counts.numpy(), edges))
                logger.log_metrics({self.prefix + key: histogram}, step=step)  # type: ignore[dict-item]
            elif hasattr(board := getattr(logger, "experiment", None), "add_histogram"):
                drawn = np.repeat(np.arange(len(counts)), counts.numpy())
                board.add_histogram(self.prefix + key, drawn, step, bins=len(counts))  # type: ignore[union-attr]

    @rank_zero_only
    def confusion(self, key: str, picture: Image.Image, rows: Tensor, columns: Tensor, classes: Sequence[str]) -> None:
        """Show a confusion matrix of classes (N,) against classes (N,): its picture, and in W&B a chart too."""
        self.picture(key, picture, None)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger) and len(classes) <= MOST_CLASSES:
                import wandb

                chart = wandb.plot.confusion_matrix(
                    y_true=rows.tolist(), preds=columns.tolist(), class_names=list(classes), title=key
                )
                logger.experiment.log({f"{key}_chart": chart})

    @rank_zero_only
    def predictions(self, key: str, images: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        """Show a table in W&B: uint8 images (N, C, H, W) and what is said of each, by column."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                shown = [wandb.Image(image.permute(1, 2, 0).numpy().squeeze()) for image in images]
                rows = [list(row) for row in zip(shown, *columns.values(), strict=True)]
                logger.experiment.log({key: wandb.Table(columns=["image", *columns], data=rows)})

    @rank_zero_only
    def student(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Upload ``student.safetensors`` and ``student.json`` as a W&B artifact with the metrics as metadata."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                name = re.sub(r"[^\w.-]", "_", f"student-{logger.experiment.name}")
                metadata = {**card["metrics"], "image_shape": list(card["image_shape"]), "seed": card["seed"]}
                artifact = wandb.Artifact(name, "model", metadata=metadata)
                for file in ("student.safetensors", "student.json"):
                    artifact.add_file(str(folder / file))
                logger.experiment.log_artifact(artifact)


@contextmanager
def watching(
    loggers: Sequence[Callable[..., Any]], composition: Mapping[str, Any], work: Path, folder: Path
) -> Iterator[Dashboards]:
    """Open the loggers of a composition; close them at the end of the block, also after an error.

    What they had written by then goes to ``folder``, because a run that failed leaves nothing in ``work``.

    Args:
        loggers: each opens one, given ``save_dir``.
        composition: plain data that they note.
        work: the folder they write to.
        folder: the path that ``work`` will have after the block has succeeded.

    Raises:
        UserError: TensorBoard is configured but not installed.
    """
    mine = loggers if collectives.rank() == 0 else ()
    for leftover in WRITTEN if mine else ():  # of a killed run, whose curves are logged again
        shutil.rmtree(work / leftover, ignore_errors=True)
    boards = Dashboards([_opened(logger, work) for logger in mine])
    status = "failed"
    try:
        for logger in boards.loggers:
            logger.log_hyperparams(composition)
        yield boards
        status = "success"
    finally:
        for logger in boards.loggers:
            _close(logger, status, folder)
        for name in WRITTEN if mine and status == "failed" else ():
            if (work / name).is_dir() and work != folder:
                shutil.copytree(work / name, folder / name, ignore=LINKS, dirs_exist_ok=True)
                shutil.rmtree(work / name)


def _opened(logger: Callable[..., Any], work: Path) -> Any:
    try:
        return logger(save_dir=str(work))
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> UserError:
    if "tensorboard" in str(error):
        return UserError(f"logger=tensorboard needs TensorBoard: {install('tensorboard')}")
    return UserError(f"logger: {str(error).splitlines()[0]}")


def tensorboard(save_dir: str, **settings: Any) -> TensorBoardLogger:
    """A TensorBoard logger that writes to ``save_dir/tensorboard``.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """
    return TensorBoardLogger(save_dir, name="tensorboard", version="", **{"default_hp_metric": False, **settings})


def weights_and_biases(
    save_dir: str, *, name: str | None = None, offline: bool = False, init_timeout: float = 20.0, **settings: Any
) -> WandbLogger:
    """A W&B run; without an API key or network an offline run in ``save_dir``, which ``wandb sync`` can send later.

    Args:
        save_dir: folder of its files.
        name: of the run.
        offline: do not try to reach W&B.
        init_timeout: seconds after which to give up reaching W&B.
        **settings: further arguments of ``wandb.init``, such as project, entity, group, job_type and tags.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return WandbLogger(name=name, save_dir=save_dir)  # logs nothing: Lightning opens no run on this rank
    import wandb

    def begin(**mode: Any) -> Any:
        quick = wandb.Settings(init_timeout=init_timeout)
        return wandb.init(dir=save_dir, name=name, settings=quick, **settings, **mode)

    wanted = os.environ.get("WANDB_MODE", "online")
    try:
        if not offline and wanted == "online" and not wandb.login(prompt=False):
            raise wandb.errors.UsageError("no API key here, wandb login stores one")
        run = begin(mode="offline") if offline else begin()
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
        print(f"W&B cannot be used ({reason}): this run is recorded offline", file=sys.stderr, flush=True)
        shutil.rmtree(Path(save_dir) / "wandb", ignore_errors=True)
        run = begin(mode="offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


def _close(logger: Any, status: str, folder: Path) -> None:
    logger.finalize(status)
    if rank_zero_only.rank or not isinstance(logger, WandbLogger):  # type: ignore[attr-defined]
        return
    import wandb

    run = logger.experiment
    run.finish(exit_code=0 if status == "success" else 1)
    wandb.teardown()  # otherwise the file is still being written after finish returned, and would be copied incomplete
    if run.settings.mode in ("offline", "dryrun"):
        at = folder / "wandb" / Path(run.dir).parent.name
        near = at.relative_to(Path.cwd()) if at.is_relative_to(Path.cwd()) else at
        print(f"W&B has nothing of this run yet; send it with: wandb sync {near}", file=sys.stderr, flush=True)
