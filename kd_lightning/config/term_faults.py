"""Checks the terms of a distillation loss: settings, taps in both networks, and shapes that adapters and losses get.

Networks are built and run without memory for their weights, adapters and losses with random values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from kd_lightning.config.composition import Training
from kd_lightning.config.node import UNKNOWN, Node, located, thaw
from kd_lightning.config.signatures import as_dict, signature_faults
from kd_lightning.core.sides import sides
from kd_lightning.core.taps import OUTPUT, Taps, find
from kd_lightning.errors import ConfigError
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.methods.real_data.terms import Term
from kd_lightning.networks.places import spread

TERM = f"{Term.__module__}.{Term.__name__}"
IMAGES = 64
"""Images of the source that a loss with a memory is tried with."""
PARTIAL = "give it _partial_: true, for it is called, or built, by the term"


def term_faults(path: str, fit: Training, teacher: Node | None) -> Iterator[str]:
    """One line for each fault of the terms of a :class:`Distill` method, or none for another method.

    Args:
        path: key of the method.
        fit: the training that the method belongs to.
        teacher: the teacher's network; None if it is not there to be looked into.
    """
    if not _distils(fit.method):
        return
    terms = {name: term for name, term in as_dict(thaw(fit.method.get("terms"))).items() if isinstance(term, dict)}
    wrong = list[str]()
    for name, term in terms.items():
        key = f"{path}.terms.{name}"
        wrong += signature_faults(key, {**term, "_target_": TERM}, [])
        nodes = {part: term.get(part) for part in ("loss", "adapt")}
        wrong += [f"{key}.{part}: {PARTIAL}" for part, node in nodes.items() if _called_at_once(node)]
    yield from wrong
    if wrong or _unknown(terms):
        return
    yield from _fitting_faults(path, fit, teacher, terms)


def _fitting_faults(path: str, fit: Training, teacher: Node | None, terms: Mapping[str, Any]) -> Iterator[str]:
    try:
        built = {name: Term(**{key: _built(value) for key, value in term.items()}) for name, term in terms.items()}
    except Exception:
        return  # a target that does not exist, reported elsewhere
    if path == "method" and not fit.method.get("label", 0.1) and not any(t.taps("student") for t in built.values()):
        yield f"{path}: with label=0 and no term that looks at the student, nothing trains it: only a stage may do so"
    if all(term.is_plain for term in built.values()) and not fit.method.get("copied"):
        return
    shapes, wrong = dict[str, Mapping[str, Any]](), list[str]()
    for side, node in {"student": fit.student, "teacher": teacher}.items():
        net = None if node is None else _without_weights(node)
        if net is not None:
            wrong += [
                f"{path}.terms.{name}.{side}: {error}"
                for name, term in built.items()
                if (error := _error(term.place, side, net))
            ]
            wrong += [
                f"{path}.terms.{name}.{side}: {error}"
                for name, term in built.items()
                for tap in term.taps(side)
                if tap != OUTPUT and not tap.startswith("@") and (error := _error(find, net, tap))
            ]
            wrong += [f"{path}.copied: {side}: {error}" for error in _copied_faults(net, side, fit.method)]
            if not wrong:
                every = [tap for term in built.values() for tap in term.taps(side)]
                shapes[side], error = _measured(net, every, fit)
                wrong += [f"{path}.terms: {side}: {error}"] if error else []
    if "teacher" not in shapes and OUTPUT in shapes.get("student", {}):
        shapes["teacher"] = {OUTPUT: shapes["student"][OUTPUT]}
    yield from wrong
    for name, term in built.items():
        if not wrong and all(set(term.taps(side)) <= set(shapes.get(side, {})) for side in ("student", "teacher")):
            with torch.random.fork_rng(devices=[]):
                error = _error(term.build, shapes["student"], shapes["teacher"], IMAGES)
            if error:
                yield f"{path}.terms.{name}: {error}"


def _copied_faults(net: Any, side: str, method: Node) -> Iterator[str]:
    """Each fault of ``copied``: a part that a network does not have."""
    copied = as_dict(thaw(method.get("copied")))
    for each in copied if side == "student" else copied.values():
        if each != "." and (error := _error(lambda path: find(net, spread(net, path)), each)):
            yield error


def _error(call: Callable[..., Any], *args: Any) -> str | None:
    try:
        call(*args)
    except ConfigError as error:
        return str(error)
    return None


def _distils(method: Node) -> bool:
    try:
        target = located(method.target)
    except ImportError:
        return False
    return inspect.isclass(target) and issubclass(target, Distill)


def _called_at_once(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node and not node.get("_partial_")


def _unknown(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_unknown, value.values() if isinstance(value, dict) else value))
    return value is UNKNOWN


def _built(value: Any) -> Any:
    node = Node.of(value)
    return value if node is None else node.build()


def _without_weights(node: Node) -> Any:
    try:
        with torch.device("meta"):
            return node.build().eval()
    except Exception:
        return None  # reported elsewhere


def _measured(net: Any, paths: list[str], fit: Training) -> tuple[Mapping[str, Any], str | None]:
    """Shapes at the taps of a network without weights, and what is wrong with them; none if it cannot be run so."""
    image = fit.data.channels, *sides(fit.data.size)
    try:
        with torch.no_grad():
            return Taps(net, paths).measure(lambda: net(torch.empty(2, *image, device="meta"))), None
    except ConfigError as error:
        return {}, str(error)
    except Exception:
        return {}, None  # the fit itself will measure


def module_faults(path: str, fit: Training) -> Iterator[str]:
    """One line for each path of ``freeze`` and ``lr_of`` that names no module of the student and no term."""
    named = {key: thaw(fit.method.get(key)) or () for key in ("freeze", "lr_of")}
    if not _distils(fit.method) or not any(named.values()) or (net := _without_weights(fit.student)) is None:
        return
    terms = [f"terms.{name}" for name in as_dict(thaw(fit.method.get("terms")))]
    for key, paths in named.items():
        for module in paths if isinstance(paths, list | dict) else ():
            if str(module).startswith("terms.") and module not in terms:
                yield f"{path}.{key}: there is no {module}; known: {', '.join(terms) or 'no term'}"
            elif module not in terms and (error := _error(find, net, str(module))):
                yield f"{path}.{key}: {error}"


def given_faults(path: str, fit: Training, stages: Mapping[str, Training]) -> Iterator[str]:
    """One line for each file of ``given`` that the stage it is named after does not keep."""
    for name, term in as_dict(thaw(fit.method.get("terms"))).items() if _distils(fit.method) else ():
        for part, file in as_dict(as_dict(term).get("given")).items():
            stage, _, kept = str(file).removeprefix("stage:").partition("/")
            if str(file).startswith("stage:") and stage in stages and _distils(stages[stage].method):
                own = {key: as_dict(each) for key, each in as_dict(thaw(stages[stage].method.get("terms"))).items()}
                there = [f"{key}.safetensors" for key, each in own.items() if each.get("adapt")]
                if kept not in ("student.safetensors", *there, *(f"{key}_loss.safetensors" for key in own)):
                    has = ", ".join(["student.safetensors", *there])
                    yield f"{path}.terms.{name}.given.{part}={file}: stage {stage} keeps no {kept}; it keeps {has}"
