"""Builds networks and data sets named by untrusted cards and configurations, from an allowlist and plain values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from kd_lightning.config.node import located as locate
from kd_lightning.core import strangers
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.errors import UserError

NETWORKS, DATA = "kd_lightning.networks.", "kd_lightning.data.datasets."
PATTERNS = f"{DATA}file_names"
"""Takes a regular expression, which may take for ever."""
TASKS = {f"{task.__module__}.{task.__name__}" for task in (Classification, Regression, Segmentation, MultiLabel)}
FETCHING = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "download")
"""Arguments with which a constructor would download something."""
WORDS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
LARGEST = 1_000_000
"""Largest integer allowed in an untrusted tree: widths, depths, classes."""
MODULES = 20_000
"""Largest number of modules, parameters and buffers of an untrusted network."""


class Untrusted(UserError):
    """A tree names something that is not on the allowlist."""


def network(tree: Any, *, trust: bool = False, most: int | None = None) -> nn.Module:
    """Build a network.

    Args:
        tree: plain data, with ``_target_`` as in Hydra; exactly this is checked and built.
        trust: whether it may name anything.
        most: largest number of bytes of its parameters and buffers, if it is not trusted.

    Raises:
        Untrusted: it names anything other than networks of kd_lightning, torch and torchvision, or downloads weights.
        Exception: whatever building it raises.
    """
    if trust:
        built = _build(tree)
    else:
        _refuse_strange(tree, _is_network)
        with _bounded(most):
            built = _build(tree)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{_named(tree)} makes a {type(built).__name__}, expected a network")
    return built


def data(tree: Any, *, trust: bool = False, **given: Any) -> Any:
    """Build a data set.

    Args:
        tree: as for :func:`network`.
        trust: whether it may name anything.
        **given: further arguments, passed if the function accepts them.

    Raises:
        Untrusted: it names anything other than a data set of kd_lightning, or downloads it.
        Exception: whatever building it raises.
    """
    if not trust:
        _refuse_strange(tree, lambda target, outermost: _loads(target) if outermost else target in TASKS)
    taken = inspect.signature(located(_named(tree))).parameters
    return _build({**tree, **{key: value for key, value in given.items() if key in taken}})


def _named(tree: Any) -> str:
    """The outermost target."""
    target = tree.get("_target_") if isinstance(tree, Mapping) else None
    if not isinstance(target, str):
        raise Untrusted("it names nothing to build: expected _target_")
    return target


def _refuse_strange(tree: Any, allowed: Callable[[str, bool], bool]) -> None:
    strangers.refuse_odd(tree)
    strangers.refuse_interpolations(tree)
    _named(tree)
    for where, value, depth in strangers.walk(tree):
        if isinstance(value, int) and abs(value) > LARGEST and not where.endswith("seed"):
            raise ValueError(f"{where} is {'-' * (value < 0)}{min(abs(value), 10**12):,} or more, at most {LARGEST:,}")
        if not isinstance(value, dict):
            continue
        names = [k for k in value if k not in WORDS]
        if odd := [k for k in names if not isinstance(k, str) or (k.startswith("_") and k.endswith("_"))]:
            raise Untrusted(f"{where or 'it'} has the key {odd[0]}, which is unknown")
        if "_target_" not in value:
            if any(word in value for word in WORDS):
                raise Untrusted(f"{where or 'it'} has arguments without a _target_")
            continue
        target = value["_target_"]
        if not isinstance(target, str):
            raise Untrusted(f"{where}._target_".lstrip(".") + " is not a name")
        if not allowed(target, depth == 0):
            raise Untrusted(f"{target} is not on the allowlist")
        if value.get("_recursive_", True) is not True:
            raise Untrusted(f"{target} would build its own parts (_recursive_)")
        _refuse_fetching(target, value)


def _refuse_fetching(target: str, node: Mapping[str, Any]) -> None:
    """Raise if a constructor would download something, by its arguments or by its defaults."""
    if given := [key for key in FETCHING if node.get(key)]:
        raise Untrusted(f"{target} would fetch something ({given[0]}={node[given[0]]!r:.60})")
    if not target.startswith("torchvision."):
        return
    if node.get("_args_"):
        raise Untrusted(f"{target} with arguments that have no names (_args_)")
    for key, parameter in inspect.signature(located(target)).parameters.items():
        if key in FETCHING and key not in node and parameter.default:
            raise Untrusted(f"{target} would fetch something without {key}=null")


def _is_network(target: str, outermost: bool) -> bool:
    """Whether it is a network class, or a torchvision model builder, under the name of its defining module."""
    module, _, name = target.rpartition(".")
    if target.startswith(NETWORKS):
        found = located(target)
        return inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__ == module
    if module == "torch.nn":
        found = getattr(nn, name, None)
        return inspect.isclass(found) and issubclass(found, nn.Module)
    if module == "torchvision.models" or module.startswith("torchvision.models."):
        from torchvision import models

        return name in models.list_models() and models.get_model_builder(name) is getattr(_module(module), name, None)
    return False


def _loads(target: str) -> bool:
    """Whether it is the ``load`` function of a data set of this package."""
    module, _, name = target.rpartition(".")
    if not target.startswith(DATA) or module == PATTERNS:
        return False
    found = located(target)
    return name == "load" and inspect.isfunction(found) and found.__module__ == module


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def located(target: str) -> Any:
    """The object that a ``_target_`` names.

    Raises:
        UserError: it is not installed, or does not exist in this version.
    """
    try:
        return locate(target)
    except Exception as error:  # importing it may raise anything
        raise UserError(f"there is no {target:.200} here: another version of its package has made this") from error


def _build(node: Any) -> Any:
    """What Hydra's ``instantiate`` returns for plain data without interpolations."""
    if isinstance(node, list):
        return [_build(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _build(value) for key, value in node.items()}
    inner = _build if node.get("_recursive_", True) else lambda value: value
    args = [inner(value) for value in node.get("_args_", ())]
    settings = {key: inner(value) for key, value in node.items() if key not in WORDS}
    make = located(node["_target_"])
    return partial(make, *args, **settings) if node.get("_partial_") else make(*args, **settings)


@contextmanager
def _bounded(most: int | None) -> Iterator[None]:
    """Abort building a network as soon as it is too large, before its memory is used."""
    parts = held = 0

    def count(*_: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MODULES:
            raise ValueError(f"more than {MODULES:,} parts")

    def weigh(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal held
        count()
        held += 0 if value is None else value.numel() * value.element_size()
        if most is not None and held > most:
            raise ValueError(f"it wants more than {held:,} bytes of weights, the file has far fewer")

    registered = (
        hooks.register_module_module_registration_hook(count),
        hooks.register_module_parameter_registration_hook(weigh),
        hooks.register_module_buffer_registration_hook(weigh),
    )
    try:
        yield
    except RuntimeError as error:  # a weight is allocated before it is registered
        if "allocate memory" not in str(error):
            raise
        raise ValueError("it wants more bytes of weights than this machine has") from error
    finally:
        for hook in registered:
            hook.remove()
