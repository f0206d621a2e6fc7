"""Terms of a distillation loss: what is compared, where in the two networks, through which adapter.

    terms:
      hint:
        weight: 100
        student: layer2                     # a tap; a list [layer1, layer2] of taps; null for none
        teacher: layer3.-1.relu:input       # what its last block's relu gets; :output, or nothing, is what it returns
        adapt: {_target_: ..., _partial_: true}
        loss: {_target_: ..., _partial_: true}

Taps are paths relative to the bare network (:func:`~kd_lightning.core.taps.find`), or names of places that fit
any of our networks, such as ``@blocks`` (:mod:`~kd_lightning.networks.places`). ``output`` is the logits, and the
default.

**A loss** is called as ``loss(student, teacher, **wanted)`` and returns a scalar. ``student`` and ``teacher`` are a
tensor for one tap, a list for a list of taps, None for null; ``wanted`` are those of ``OFFERED`` that its signature
names. It is a function, or an ``nn.Module`` class as a partial, which is built like an adapter, for the shapes that it
is called with.

**An adapter** is an ``nn.Module`` class as a partial, called as ``adapt(student, teacher)`` in the form above. It
returns the pair that the loss gets; a side that it leaves alone it returns as it came. Its constructor gets those of
``student_shapes=[(C, H, W), ...]``, ``teacher_shapes=[...]`` (without the batch, always lists) and ``num_images`` (of
the source) that it names.

Parameters of adapters and losses are trained with the student, and are in checkpoints, but not in the exported
student. A fit keeps the adapter of a term in ``TERM.safetensors`` and its loss, if it is a module, in
``TERM_loss.safetensors``. A later stage gets them by ``given: {PART: stage:NAME/TERM.safetensors}``, where PART is a
path inside its own adapter, and ``.`` the whole of it: such parts are loaded bit for bit and stay as they are.
"""

from __future__ import annotations

import copy
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kd_lightning.core.strangers import in_a_line
from kd_lightning.core.taps import OUTPUT, at
from kd_lightning.errors import ConfigError
from kd_lightning.networks.places import spread
from kd_lightning.networks.weights import load_weights

Paths: TypeAlias = str | Sequence[str] | None
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

OFFERED = {
    "labels": "(N,) int64, or floats for regression; with all_views those of every row",
    "index": "(N,) int64 positions of the images in the source, or of every row",
    "epoch": "from 0",
    "several": "whether an image has several labels, which are then (N, K) of 0 and 1",
    "student_logits": "(N, K)",
    "teacher_logits": "(N, K), those stored with the images if there are any",
}
"""What a loss may ask for by naming a parameter."""
TRIED = 4
"""Images that adapters and losses are tried on before training."""
ROWS = ("labels", "index", "student_logits", "teacher_logits")


class Term(nn.Module):
    """weight * loss(student's taps, teacher's taps), see above.

    Args:
        weight: factor of the loss.
        loss: a function, or a module's class as a partial.
        student: taps of the student.
        teacher: taps of the teacher.
        adapt: an adapter's class as a partial; None compares the taps themselves.
        given: path of a part of the adapter -> file of its weights, which stay as they are.
        global_batch: with ``trainer=ddp``, true: the loss compares images with each other, and sees those of all ranks;
            ``sum``: it is a sum over images, to which the other ranks' are added; false: a mean over images.
        warm_up: epochs in which the weight grows: in epoch e (from 0) to ``weight`` * min((e + 1) / warm_up, 1).
        all_views: with ``method.views`` the taps hold all rows, V for each image, view by view; else the first N.
    """

    def __init__(
        self,
        *,
        weight: float,
        loss: Callable[..., Any],
        student: Paths = OUTPUT,
        teacher: Paths = OUTPUT,
        adapt: Callable[..., Any] | None = None,
        given: Mapping[str, str] | None = None,
        global_batch: bool | Literal["sum"] = False,
        warm_up: int = 0,
        all_views: bool = False,
    ) -> None:
        super().__init__()
        self.weight, self.student, self.teacher, self.given = weight, student, teacher, dict(given or {})
        self.global_batch, self.warm_up, self.all_views = global_batch, warm_up, all_views
        self.make_adapter, self.make_loss = adapt, loss
        self.adapt: nn.Module | None = None
        self.loss: Callable[..., Tensor] | None = None if is_class(loss) else loss
        self.wanted = wanted(loss)

    @property
    def is_plain(self) -> bool:
        """Whether it is a function of the networks' outputs, so that nothing has to be built or tried."""
        named = {*listed(self.student), *listed(self.teacher)}
        modules = self.make_adapter is not None or is_class(self.make_loss)
        return named <= {OUTPUT} and not modules and "index" not in self.wanted

    def place(self, side: str, net: nn.Module) -> None:
        """Replace the names of places in the taps of ``student`` or ``teacher`` by the paths of that network.

        Raises:
            ConfigError: the network has no place of that name.
        """
        setattr(self, side, spread(net, getattr(self, side)))

    def taps(self, side: str) -> list[str]:
        """Paths of one side, ``student`` or ``teacher``, including ``output`` where the loss asks for logits."""
        named = listed(getattr(self, side))
        return named + [OUTPUT] * (f"{side}_logits" in self.wanted)

    @torch.no_grad()
    def build(self, student: Shapes, teacher: Shapes, num_images: int | None) -> None:
        """Build adapter and loss for shapes of taps, and try them on random values.

        Args:
            student: shapes of the student's taps without the batch, by path.
            teacher: shapes of the teacher's taps.
            num_images: number of the source's images; None if it makes new ones.

        Raises:
            ConfigError: adapter or loss do not fit the shapes, or ``given`` names no part of the adapter.
            TeacherError: a file of ``given`` does not fit.
        """
        if "index" in self.wanted and num_images is None:
            raise ConfigError(
                f"{_name(self.make_loss)} keeps something for every image, and this source makes them anew: use "
                "source=real or queried"
            )
        sides = (student, self.student), (teacher, self.teacher)
        pair = [at({path: torch.randn(TRIED, *shape) for path, shape in own.items()}, paths) for own, paths in sides]
        named = " and ".join(
            f"{net} {', '.join(f'{path} {own[path]}' for path in listed(paths)) or 'null'}"
            for net, (own, paths) in zip(("student", "teacher"), sides, strict=True)
        )
        if self.make_adapter is not None:
            with _explained(f"{named} do not fit the adapter {_name(self.make_adapter)}"):
                self.adapt = _made(self.make_adapter, pair, num_images)
                student_side, teacher_side = self.adapt.eval()(*pair)
                pair = [student_side, teacher_side]
            self._load_given(self.adapt)
        fitted = f"{named} do not fit {_name(self.make_loss)}"
        with _explained(fitted if self.make_adapter else f"{fitted}, and there is no adapter between them"):
            if is_class(self.make_loss):
                self.loss = _made(self.make_loss, pair, num_images)
            tried = copy.deepcopy(self.loss)  # whose memory it may change
            assert tried is not None
            tried(*pair, **self._invented(student, teacher))
        self.train()

    def _invented(self, student: Shapes, teacher: Shapes) -> dict[str, Any]:
        """Values of what the loss asks for, to try it on."""
        shapes = {"student_logits": student.get(OUTPUT), "teacher_logits": teacher.get(OUTPUT)}
        made: dict[str, Any] = {name: torch.randn(TRIED, *shape) for name, shape in shapes.items() if shape}
        made |= {"labels": torch.arange(TRIED) % 2, "index": torch.arange(TRIED), "epoch": 0, "several": False}
        return {name: made.get(name) for name in self.wanted}

    def _load_given(self, adapter: nn.Module) -> None:
        for part, file in self.given.items():
            try:
                module = adapter if part == "." else adapter.get_submodule(part)
            except AttributeError:
                has = ", ".join(name for name, _ in adapter.named_children())
                raise ConfigError(f"given.{part}: {type(adapter).__name__} has no such part; it has {has}") from None
            if not file.startswith("stage:"):  # while the composition is checked, there is no file yet
                load_weights(module, file)
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Term:
        """Keep the given parts in eval mode."""
        super().train(mode)
        if self.adapt is not None:
            for part in self.given:
                (self.adapt if part == "." else self.adapt.get_submodule(part)).eval()
        return self

    def kept(self, name: str) -> dict[str, nn.Module]:
        """The modules that a fit keeps, by the name of their file, for a term of this name."""
        modules = {name: self.adapt, f"{name}_loss": self.loss}
        return {key: net for key, net in modules.items() if isinstance(net, nn.Module) and net.state_dict()}

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        known: Mapping[str, Any],
        gathered: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The weighted loss, a scalar.

        Args:
            student: values of its taps by path.
            teacher: values of its taps by path.
            known: values of ``OFFERED``, except logits; and ``views``, the rows of each image.
            gathered: rows (N, ...) of this rank -> those of all ranks.
        """
        assert self.loss is not None, "build the terms before training"
        logits = {"student_logits": student.get(OUTPUT), "teacher_logits": teacher.get(OUTPUT)}
        known = {"several": False, **known, **logits}
        views = known.get("views", 1)
        told = {name: known[name] for name in self.wanted}
        if views > 1:
            told |= {k: told[k].repeat(views) for k in ("labels", "index") if told.get(k) is not None}
        pair = at(student, self.student), at(teacher, self.teacher)
        if self.adapt is not None:
            pair = self.adapt(*pair)
        if self.global_batch is True:
            if views > 1:
                gathered = partial(_by_view, gathered, views)
            pair = tuple(_mapped(side, gathered) for side in pair)
            told |= {k: gathered(told[k]).to(told[k].dtype) for k in ROWS if told.get(k) is not None}
        loss = self.loss(*pair, **told)
        if self.global_batch == "sum":
            loss = gathered(loss).sum()
        grown = min(1.0, (known["epoch"] + 1) / self.warm_up) if self.warm_up else 1.0
        return self.weight * loss if grown == 1.0 else self.weight * grown * loss


def listed(paths: Paths) -> list[str]:
    """The paths of a tap, of several, or of none."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def is_class(loss: Any) -> bool:
    """Whether a loss is a module's class, possibly as a partial, and not a function."""
    target = loss.func if isinstance(loss, partial) else loss
    return inspect.isclass(target) and issubclass(target, nn.Module)


def wanted(loss: Any) -> list[str]:
    """The names of ``OFFERED`` that a loss asks for: parameters of a function, or of a module's ``forward``."""
    target: Any = loss.func if isinstance(loss, partial) else loss
    if is_class(target) or isinstance(target, nn.Module):
        target = target.forward
    try:
        names = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []  # a builtin without a signature
    return [name for name in OFFERED if name in names]


def located(loss: Any) -> Any:
    """The function or class that a loss's ``{_target_: ...}`` names; None where it cannot be found."""
    if not isinstance(loss, Mapping):
        return loss
    try:
        return pkgutil.resolve_name(loss["_target_"])
    except Exception:
        return None  # reported elsewhere


def _made(make: Any, pair: Sequence[Any], num_images: int | None) -> nn.Module:
    """A module built for a pair of tensors or lists of tensors."""
    shapes = [[tuple(one.shape[1:]) for one in _each(side)] for side in pair]
    known = {"student_shapes": shapes[0], "teacher_shapes": shapes[1], "num_images": num_images}
    names = inspect.signature(make).parameters
    module: nn.Module = make(**{key: value for key, value in known.items() if key in names})
    return module


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Inside, any error becomes a line that begins with ``what``.

    Raises:
        ConfigError: instead of any other error.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except ConfigError:
        raise
    except Exception as error:  # of anybody's module
        raise ConfigError(f"{what}: {in_a_line(error)}") from error


def _name(make: Any) -> str:
    return getattr(make.func if isinstance(make, partial) else make, "__name__", str(make))


def _each(side: Any) -> list[Tensor]:
    return [] if side is None else [side] if isinstance(side, Tensor) else list(side)


def _by_view(gathered: Callable[[Tensor], Tensor], views: int, rows: Tensor) -> Tensor:
    """Rows of all ranks, view by view."""
    return gathered(rows.unflatten(0, (views, -1)).transpose(0, 1)).transpose(0, 1).flatten(0, 1)


def _mapped(side: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return side if side is None else change(side) if isinstance(side, Tensor) else [change(one) for one in side]
