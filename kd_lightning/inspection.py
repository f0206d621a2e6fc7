"""A finished run under the magnifying glass: plain functions for notebooks, tensors in, tensors out."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from kd_lightning import resolvers
from kd_lightning.artifacts import Store
from kd_lightning.capture import capture
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import UserError
from kd_lightning.export import DATA_IN_MEMORY, Student, load_student, trusted
from kd_lightning.inference import predict
from kd_lightning.networks import head_of
from kd_lightning.report import Table, fold
from kd_lightning.runs import collect, read_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = "runs"


@dataclass(frozen=True)
class Finished:
    """A run that ended well.

    Args:
        folder: the run folder.
        result: what its ``result.json`` holds.
        cfg: the composition it ran; interpolations resolve when read.
        student: as :func:`~kd_lightning.export.load_student` gives it.
        trust: whether its data and networks may be built by anybody's code.
    """

    folder: Path
    result: dict[str, Any]
    cfg: DictConfig
    student: Student
    trust: bool = False

    @property
    def classes(self) -> list[str]:
        """Class names; their positions are the labels."""
        return self.student.card["classes"]


def newest_run(top: str | Path | None = None) -> Path:
    """The folder of the run that finished last below ``top``.

    Args:
        top: default is ``runs`` here, or in the nearest folder above that has one.

    Raises:
        UserError: there is none.
    """
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    finished = [path for path in folder.rglob("result.json") if (path.parent / "student.json").is_file()]
    if not finished:
        raise UserError(f"no finished run below {folder}: run kd-lightning there, or name a run folder")
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def newest_sweep(top: str | Path | None = None) -> Path:
    """The folder of the last sweep below ``top`` (default as for :func:`newest_run`); ``top`` itself where none is."""
    folder = Path(top) if top is not None else _runs_near(Path.cwd())
    sweeps = [path for path in (folder / "sweeps").glob("*") if path.is_dir()]
    return max(sweeps, key=lambda path: path.stat().st_mtime, default=folder)


def _runs_near(here: Path) -> Path:
    return next((folder / RUNS for folder in (here, *here.parents) if (folder / RUNS).is_dir()), here / RUNS)


def open_run(folder: str | Path, *, network: nn.Module | None = None, trust: bool = False) -> Finished:
    """Read a run folder.

    Args:
        folder: of a run that ended well.
        network: the student's network, where it was handed to ``distill`` in memory; it gets the weights.
        trust: let its composition name data and networks that are none of ours, and so run anybody's code.

    Raises:
        UserError: no such folder, no result or a half-written one, a failed run, another format version.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of a finished run")
    try:
        result = read_result(folder)
    except FileNotFoundError:
        raise UserError(f"{folder} has no result.json: its run was killed, is still at work, or is none") from None
    student = load_student(folder, network=network, trust=trust)
    resolvers.register()
    path = folder / ".hydra" / "config.yaml"
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} is no composition")
    return Finished(folder, result, cfg, student, trust)


def data_of(run: Finished) -> Dataset:
    """The data set that a run was made with.

    Raises:
        UserError: it is not here, or is loaded by code that is none of ours (see ``open_run(..., trust=True)``).
    """
    from kd_lightning.data.load import load_data

    target = str(OmegaConf.select(run.cfg, "data.load._target_"))
    if target == DATA_IN_MEMORY:
        raise UserError(f"{run.folder}: its data were handed over in memory and are not kept")
    if not (run.trust or _loads_our_data(target)):
        raise UserError(f"{run.folder}: its data come from {target}, which is none of ours; trust=True runs it")
    return load_data(run.cfg, Store(run.cfg.artifacts.root))


def _loads_our_data(target: str) -> bool:
    ours = "kd_lightning.data.datasets."
    if not target.startswith(ours):
        return False
    found = get_object(target)
    return inspect.isfunction(found) and found.__module__.startswith(ours)


def real_images(run: Finished) -> Split:
    """The images a run was judged by: its data's test part, else the validation part.

    Raises:
        UserError: as for :func:`data_of`, or the data have neither.
    """
    dataset = data_of(run)
    split = dataset.test or dataset.val
    if split is None:
        raise UserError(f"{run.folder}: its data ({dataset.name}) hold no test images")
    return split


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How many images of class ``i`` were put in class ``j``: int64 (K, K), from classes (N,) and (N,)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(counts: Tensor) -> Tensor:
    """Accuracy by true class (K,) from a confusion matrix (K, K); NaN where a class has no image."""
    return counts.diagonal() / counts.sum(1)


class Errors(NamedTuple):
    """Wrong answers, the surest first: positions (M,), the answers' classes (M,) and probabilities (M,)."""

    places: Tensor
    predicted: Tensor
    confidence: Tensor


def confident_errors(logits: Tensor, labels: Tensor, most: int = 16) -> Errors:
    """The wrong answers that were given with most confidence, at most ``most``, from logits (N, K) and labels (N,)."""
    confidence, predicted = logits.float().softmax(1).max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    index = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]
    return Errors(index, predicted[index], confidence[index])


class Calibration(NamedTuple):
    """Expected calibration error, and per bin that holds answers: mean confidence, accuracy, their number."""

    ece: float
    confidence: Tensor
    accuracy: Tensor
    number: Tensor


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """How far confidence is from accuracy, over bins of equal width (Guo et al., ICML 2017).

    Args:
        logits: (N, K).
        labels: (N,).
        bins: between 0 and 1.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open to the left
    count = torch.bincount(place, minlength=bins)
    there = count > 0
    mean_confidence = torch.bincount(place, confidence, minlength=bins)[there] / count[there]
    accuracy = torch.bincount(place, right, minlength=bins)[there] / count[there]
    ece = float((count[there] * (mean_confidence - accuracy).abs()).sum() / len(labels))
    return Calibration(ece, mean_confidence, accuracy, count[there])


@torch.no_grad()
def features(net: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """What enters the head of a network: (N, D) in fp32, for uint8 images (N, C, H, W)."""
    head = head_of(net)
    kept = []
    with capture(net.eval(), inputs=(head,)) as taps:
        for chunk in images.split(batch_size):
            net(chunk.float() / 255)
            kept.append(taps[head].flatten(1).float())
    return torch.cat(kept)


def feature_map(points: Tensor, *, how: str = "pca", seed: int = 0) -> np.ndarray:
    """Features (N, D) laid out in the plane, (N, 2).

    Args:
        points: one row per image.
        how: ``pca`` keeps distances as well as two axes can; ``tsne`` keeps neighbours together (and is slow
            beyond a few thousand points).
        seed: of the layout.

    Raises:
        UserError: another word for ``how``, or fewer than three points.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(points) < 3:
        raise UserError(f"a map needs three points at least, got {len(points)}")
    if how == "pca":
        return PCA(2, random_state=seed).fit_transform(points.double().numpy())
    if how == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.numpy())
    raise UserError(f"there is no map {how!r}: take pca or tsne")


def load_generator(run: Finished) -> nn.Module:
    """The generator of a run as training left it: latents (N, latent) to images (N, C, H, W) in data units.

    Raises:
        UserError: the run trained none, its checkpoint is missing or unreadable, or holds another generator.
    """
    node = OmegaConf.select(run.cfg, "method.generator")
    if node is None:
        raise UserError(f"{run.folder}: its method ({run.result.get('method')}) has no generator")
    made_of: Any = OmegaConf.to_container(node, resolve=True)
    if not (run.trust or trusted(made_of)):
        raise UserError(f"{run.folder}: its generator {node.get('_target_')} is none of ours; trust=True builds it")
    try:
        generator: nn.Module = instantiate(made_of)
    except InstantiationException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{run.folder}: its generator cannot be built here: {reason}") from error
    state = {
        name.removeprefix("generator."): value
        for name, value in _checkpoint(run.folder / "last.ckpt")["state_dict"].items()
        if name.startswith("generator.")
    }
    if not state:
        raise UserError(f"{run.folder / 'last.ckpt'} holds no generator: it is the checkpoint of another method")
    wanted = generator.state_dict()
    if state.keys() != wanted.keys():
        name = min(state.keys() ^ wanted.keys())
        raise UserError(
            f"{run.folder / 'last.ckpt'} holds another generator than its composition says: "
            f"{name} is in {'the checkpoint' if name in state else 'the composition'} alone"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{run.folder / 'last.ckpt'} holds a generator of other widths: {name} is {tuple(value.shape)}, "
                f"the composition says {tuple(wanted[name].shape)}"
            )
    generator.load_state_dict(state)
    return generator.requires_grad_(False)


def _checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: it holds the generator")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of kd_lightning")
    return content


def latents(run: Finished, n: int, *, seed: int = 0) -> Tensor:
    """Standard normal latents (n, latent) as long as the run's generator wants them."""
    size = OmegaConf.select(run.cfg, "method.generator.latent") or OmegaConf.select(run.cfg, "method.latent")
    return torch.randn(n, int(size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, *, company: int = 128) -> Tensor:
    """Images (N, C, H, W), clamped to [0, 1], as the student saw them: with the statistics of a batch.

    Methods draw with the generator in training mode, where batch norm standardises over the batch, so that an
    image depends on those beside it. Random latents keep ``z`` company, lest few or similar ones be taken for
    a batch. The generator itself stays as it was.

    Args:
        generator: as :func:`load_generator` gives it.
        z: latents, (N, latent).
        company: how many random latents share the batch.
    """
    others = torch.randn(company, z.shape[1], generator=torch.Generator().manual_seed(0))
    kept = {name: value.clone() for name, value in generator.state_dict().items()}
    was_training = generator.training
    try:
        images: Tensor = generator.train()(torch.cat([z, others]))[: len(z)]
    finally:
        generator.load_state_dict(kept)
        generator.train(was_training)
    return images.clamp(0, 1)


def interpolation(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Latents on the great circles from ``start`` to ``end``, both (N, Z): (N * steps, Z), row by row.

    Straight lines would pass near the origin, where a generator has hardly ever been.
    """
    t = torch.linspace(0, 1, steps).view(1, -1, 1)
    a, b = start[:, None], end[:, None]
    angle = torch.acos(torch.cosine_similarity(a, b, dim=-1).clamp(-1 + 1e-6, 1 - 1e-6))[..., None]
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).flatten(0, 1)


class Neighbours(NamedTuple):
    """The nearest of many images for each of a few: positions (N, k) and root mean square differences (N, k)."""

    places: Tensor
    distance: Tensor


def nearest(images: Tensor, real: Tensor, k: int = 1) -> Neighbours:
    """The real images most like each image, pixel by pixel.

    Args:
        images: float in [0, 1], (N, C, H, W).
        real: uint8, (M, C, H, W).
        k: how many of each.
    """
    pixels = real.flatten(1).float() / 255
    distances = torch.cat([torch.cdist(x, pixels) for x in images.flatten(1).split(256)])
    closest = distances.topk(k, largest=False)
    return Neighbours(closest.indices, closest.values / pixels.shape[1] ** 0.5)


def class_counts(logits: Tensor) -> Tensor:
    """How often each class is answered: int64 (K,), from logits (N, K)."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1])


def grid(images: Tensor, columns: int = 8, *, padding: int = 1) -> np.ndarray:
    """Images (N, C, H, W), float in [0, 1] or uint8, side by side on white: (H', W', 3) in [0, 1] for ``imshow``."""
    from torchvision.utils import make_grid

    shown = images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)
    return make_grid(shown, nrow=columns, padding=padding, pad_value=1.0).permute(1, 2, 0).numpy()


def gallery(images: Tensor, captions: Sequence[str] = (), *, columns: int = 8) -> Figure:
    """Images (N, C, H, W), float in [0, 1] or uint8, each with its caption, as a matplotlib figure."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, (1.4 if captions else 1.15) * rows), layout="constrained", dpi=110)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(grid(images[i : i + 1], padding=0), interpolation="nearest")
        if i < len(captions):
            axes.set_title(captions[i], fontsize=8, pad=2)
    return figure


class Curve(NamedTuple):
    """One quantity over a fit: rounds (n,), seconds (n,) and values (n,)."""

    rounds: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


def curves(folder: str | Path) -> dict[str, Curve]:
    """Everything in the ``metrics.csv`` of a run folder, by name; empty entries are left out.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    path = Path(folder) / "metrics.csv"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else ()) if name not in ("round", "seconds", "epoch")]
        found = {}
        for name in names:
            there = [row for row in rows if row[name]]
            columns = [[float(row[key]) for row in there] for key in ("round", "seconds", name)]
            found[name] = Curve(*map(np.array, columns))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no curves of kd_lightning") from error
    return found


def table(folders: Iterable[str | Path]) -> Table:
    """One row per combination of settings over all runs in and under ``folders``, as ``kd-report`` prints it."""
    return fold(collect(folders))


def answers(net: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) for images (N, C, H, W), uint8 or float in [0, 1]."""
    if images.dtype == torch.uint8:
        return predict(net, images)
    with torch.no_grad():
        return torch.cat([net.eval()(chunk).float() for chunk in images.split(500)])


def captions(logits: Tensor, classes: Sequence[str]) -> list[str]:
    """``name 0.98``: class and probability for each row of logits (N, K)."""
    confidence, label = logits.float().softmax(1).max(1)
    return [f"{classes[i]} {p:.2f}" for i, p in zip(label.tolist(), confidence.tolist(), strict=True)]
