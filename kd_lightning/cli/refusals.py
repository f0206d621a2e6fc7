"""Refuses a command whose overrides are wrong, before Hydra starts; imports torch only where nothing else is wrong."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain

from omegaconf import DictConfig, OmegaConf

from kd_lightning.core.extras import install

PLUGINS = {
    "hydra/launcher=submitit_slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_local": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
    "sweep=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
"""A plugin of Hydra as it is typed -> the extra that installs it, and its package."""

MOST_JOBS = 32
"""Largest number of a sweep's jobs that are checked before it starts."""


def refuse_wrong_overrides(args: Namespace) -> bool:
    """Check the overrides of all jobs; returns whether any job only plans."""
    from kd_lightning.config.overrides import absent, jobs, misspelt_keys, read, refusal, swept

    folders = [args.config_dir] if args.config_dir else []
    each = jobs(args.overrides)
    plans = False
    lines = dict.fromkeys(plugin_faults(args.overrides))  # an ordered set
    if lines:
        raise refusal(list(lines))  # without the plugin nothing composes
    if len(each) > 1 or any(override.startswith("sweep=") for override in args.overrides):
        varied = swept(args.overrides, folders, args.config_path, args.config_name or "run")
        if varied is not None:
            each = jobs([*varied, *args.overrides])
        elif len(each) > 1 and not args.multirun:
            several = [o for o in args.overrides if all(o not in job for job in each)]
            lines |= dict.fromkeys(f"{o}: several values; add -m to run one job for each" for o in several)
    if misspelt := absent(dict.fromkeys(chain(*each)), folders, args.config_path):
        raise refusal([*lines, *misspelt])  # at once: what else is wrong may depend on them
    for job in each[:MOST_JOBS]:
        found = read(job, folders, config_path=args.config_path, config_name=args.config_name or "run")
        plans = plans or found.cfg.get("plan") is True
        if not found.problems and not found.unset and not lines:
            continue
        if not found.problems and (typos := misspelt_keys(found)):
            raise refusal([*lines, *typos])  # at once, before seconds of imports
        import_for(found.cfg)
        from kd_lightning.config.check import faults, key_of

        wrong = faults(found.cfg)
        named = [key_of(line) for line in wrong]
        lines |= dict.fromkeys(found.problems + wrong)
        for key, override in found.unset.items():
            if not any(key == name or key.startswith(f"{name}.") for name in named):
                lines[f"{key}: no file sets it, so type +{override}"] = None
    if lines:
        raise refusal(list(lines))
    return plans


def plugin_faults(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each plugin of Hydra that is typed and not installed, or that lacks what is asked of it."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    launcher = given.get("hydra/launcher", "slots")
    for typed, (extra, package) in PLUGINS.items():
        if typed not in overrides:
            continue
        try:
            there = find_spec(package)
        except ModuleNotFoundError:
            there = None
        if there is None:
            yield f"{typed}: not installed; type {install(extra)}"
    if launcher != "slots" and given.get("sweep.resume", "null") != "null":
        yield (
            f"sweep.resume: hydra/launcher={launcher} knows no resuming; give the same command again, "
            "and what has finished is not run again but read from the artefacts"
        )


def import_for(cfg: DictConfig) -> None:
    """Import what runs a configuration, without what it does not use."""
    from kd_lightning.core.light_imports import import_lightly

    if OmegaConf.select(cfg, "compile") is None:
        import_lightly(re.findall(r"_target_: *(\S+)", OmegaConf.to_yaml(cfg)))
