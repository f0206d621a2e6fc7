"""Builds the service of ``kd-serve`` from a configuration: checks it, obtains the teacher, describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from kd_lightning.config import resolvers
from kd_lightning.config.check import examined, faults, key_of
from kd_lightning.config.composition import Composition
from kd_lightning.config.node import thaw
from kd_lightning.config.overrides import read, refusal
from kd_lightning.config.signatures import fits, wrong
from kd_lightning.config.spelling import suggest
from kd_lightning.config.task_kinds import KINDS, kind_of
from kd_lightning.core.extras import install
from kd_lightning.core.sides import sides
from kd_lightning.core.tasks import Classification
from kd_lightning.data.datasets.none import load as describe_data
from kd_lightning.data.load import dataset_digest
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import RunContext
from kd_lightning.errors import ConfigError, UserError
from kd_lightning.run.run import settle
from kd_lightning.run.teacher import TeacherHandle, obtain_teacher
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import digest
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.remote.local import LocalAsker
from kd_lightning.tracking.backends import Dashboards

if TYPE_CHECKING:
    from kd_lightning.cli.serve.app import Service

READ = ("data", "teacher", "experiment", "scale", "artifacts", "trainer.accelerator")
"""The parts of kd-lightning's configuration that kd-serve reads."""
SETTINGS: dict[str, Any] = {
    "host": str,
    "port": int,
    "key_env": str | None,
    "name": str | None,
    "max_batch": int,
    "max_body": int | None,
    "requests_per_minute": float | None,
    "images_per_minute": float | None,
    "waiting": int,
    "patience": float,
    "connections": int,
    "connections_per_address": int,
    "count_file": str | None,
}
"""Its own settings, described in ``conf/serve.yaml``."""


FLOOD = ("patience", "connections", "connections_per_address")


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> DictConfig:
    """The checked configuration of kd-serve.

    Args:
        overrides: as typed.
        config_dirs: further folders of groups.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    lines = []
    ours = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in SETTINGS or any(key == word or key.startswith(f"{word}.") for word in READ):
            ours.append(override)
        else:
            lines.append(f"{key}: kd-serve has no such setting{suggest(key, [*SETTINGS, *READ])}")
    resolvers.register()
    found = read(ours, config_dirs, config_name="serve")
    wrong = [line for line in faults(found.cfg) if key_of(line).partition(".")[0] in ("data", "teacher", "artifacts")]
    lines += [*found.problems, *wrong, *_own_faults(found.cfg)]
    named = [key_of(line) for line in lines]
    for key, override in found.unset.items():
        if not any(key == name or key.startswith(f"{name}.") for name in named):
            lines.append(f"{key}: no file sets it, so type +{override}")
    if lines:
        raise refusal(list(dict.fromkeys(lines)))
    return found.cfg


def _own_faults(cfg: DictConfig) -> list[str]:
    lines = [wrong(key, cfg[key], hint) for key, hint in SETTINGS.items() if not fits(cfg[key], hint)]
    if lines:
        return lines
    positive = ("max_batch", "max_body", "requests_per_minute", "images_per_minute", "waiting", *FLOOD)
    lines = [f"{key}={cfg[key]}: expected at least 1" for key in positive if cfg[key] is not None and cfg[key] < 1]
    if not 0 <= cfg.port < 65536:
        lines.append(f"port={cfg.port}: expected 0 to 65535")
    if cfg.teacher.net is None:
        lines.append("teacher.net: there is no network to serve: choose one with teacher=NAME, such as teacher=lenet5")
    elif (kind := kind_of(_composition(cfg).data.load)) != "classification":
        lines.append(f"data: a service tells classes, but the labels of these data are {KINDS[kind]}")
    elif cfg.teacher.access in ("white", "logits"):
        lines.append(
            f"teacher.access: a service tells no more than probabilities, got {cfg.teacher.access}: "
            "type teacher.access=probs, topk or label"
        )
    return lines


def key_in(name: str | None) -> str | None:
    """The key in an environment variable.

    Args:
        name: of the variable; None for no key.

    Raises:
        UserError: the variable is not set, its name is invalid, or its content is not a valid key.
    """
    if name is None:
        return None
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        raise UserError(
            "key_env: expected the NAME of an environment variable, in capital letters. If it was the key itself, "
            "take it out of the command, where others can read it"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"key_env={name}: that environment variable is not set")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"key_env={name}: the key in that variable holds a blank or a letter that HTTP does not carry")
    return key


def _composition(cfg: DictConfig) -> Composition:
    """The composition of a run with this teacher; only its teacher and data must be valid."""
    _, composition = examined(cfg)
    if composition is None or composition.teacher is None:
        raise ConfigError("there is no teacher to serve: choose one with teacher=NAME")
    return composition


def obtain(composition: Composition) -> TeacherHandle:
    """The teacher of a composition: from its weights file, which needs no data, or trained once and kept.

    Raises:
        UserError: as in a run.
    """
    assert composition.teacher is not None
    teacher, data = replace(composition.teacher, access="white"), composition.data  # the server holds the network
    composition = settle(composition.derive(teacher=teacher))
    store = Store(**thaw(composition.artifacts))
    if teacher.weights not in (None, "tune"):
        dataset = describe_data(classes=data.num_classes, channels=data.channels, size=data.size)
    else:
        dataset = load_data(data, store)
    bench = RunContext(store, dataset, dataset_digest(dataset), Classification(dataset.num_classes), Dashboards())
    obtained = obtain_teacher(composition, bench)
    if obtained is None or obtained.net is None:
        raise ConfigError("kd-serve answers by a network that is here: choose one with teacher=NAME")
    return obtained


def described(cfg: DictConfig, composition: Composition, obtained: TeacherHandle) -> Described:
    """The teacher's description of itself.

    Args:
        cfg: the service's own settings.
        composition: the teacher's.
        obtained: the teacher.

    Raises:
        ConfigError: the limits do not allow even one image.
    """
    assert obtained.net is not None
    assert composition.teacher is not None
    settings, data = composition.teacher, composition.data
    height, width = sides(data.size)
    bytes_of_one = height * width * data.channels
    most = [cfg.max_batch, cfg.images_per_minute, cfg.max_body and cfg.max_body // bytes_of_one]
    max_batch = int(min(number for number in most if number is not None))
    decimals = settings.decimals if settings.access in ("probs", "topk") else None
    k = min(settings.k, data.num_classes)
    tells = [settings.access, decimals, k if settings.access == "topk" else None, settings.abstain_below]
    if max_batch < 1:
        raise ConfigError(f"max_body={cfg.max_body}: an image of {height}x{width} has {bytes_of_one} bytes")
    return Described(
        name=cfg.name or type(obtained.net.net).__name__,
        version=digest([obtained.key, *tells]),
        access=cast(Any, settings.access),
        num_classes=data.num_classes,
        image=(height, width, data.channels),
        max_batch=max_batch,
        decimals=decimals,
        k=k,
        price=settings.price,
    )


def service_of(cfg: DictConfig) -> Service:
    """The service of a configuration.

    Raises:
        UserError: an extra is missing, or as in :func:`obtain`.
    """
    try:
        from kd_lightning.cli.serve.app import Service
        from kd_lightning.cli.serve.limits import Limits, Tally
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: {install('http')}") from error
    key, tally = key_in(cfg.key_env), Tally(cfg.count_file)
    composition = _composition(cfg)
    obtained = obtain(composition)
    teacher = described(cfg, composition, obtained)
    assert obtained.net is not None
    assert composition.teacher is not None
    limits = Limits(cfg.requests_per_minute, cfg.images_per_minute, cfg.waiting, **{name: cfg[name] for name in FLOOD})
    unsure = composition.teacher.abstain_below
    client = LocalAsker(obtained.net, teacher, abstain_below=unsure, device=obtained.device)
    return Service(client.ask, teacher, limits, key=key, tally=tally)
