"""The command ``kd-lightning``: Hydra composes, ``run`` runs. Imports no torch before a run starts."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd_lightning.cli.entry import writing_to_a_pipe
from kd_lightning.config import resolvers
from kd_lightning.core.extras import install
from kd_lightning.distributed import launch as start
from kd_lightning.errors import RankLost, UserError

if TYPE_CHECKING:
    from kd_lightning.config.composition import Composition

NAMED = ("data", "source", "teacher", "student", "method", "scale", "experiment")
PLUGINS = {
    "hydra/launcher=submitit_slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_local": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
    "sweep=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
"""A plugin of Hydra as it is typed -> the extra that installs it, and its package."""

SHOWS = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
"""Flags that print something and run nothing."""

MOST_JOBS = 32
"""Largest number of a sweep's jobs that are checked before it starts."""
_PLANS: list[tuple[float, int]] = []
"""Seconds and bytes of each planned job."""
_PROMISED: set[str] = set()


def main() -> None:
    """Check the command line and hand over to Hydra."""
    with writing_to_a_pipe():
        _main()


def _main() -> None:
    if sys.argv[1:2] == ["explain"]:
        from kd_lightning.cli.explain import main as explain

        explain(sys.argv[2:])
        return
    resolvers.register()
    start.stay_with_parent()
    sys.path.append(str(Path.cwd()))  # finds a user's method in the working directory
    # on a busy machine, threads that spin while waiting make small steps twenty times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # argparse would stop at an override that follows a flag
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    if place := start.placed():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of rounds in which all parameters are used
        if place.rank:  # all ranks use the folder of the first
            sys.argv += ["hydra.output_subdir=null", f"hydra.run.dir={tempfile.gettempdir()}"]
    args = _flags().parse_known_args()[0]  # Hydra reports the rest
    # the package's settings complete a plugin's launchers, under the names of their documentation
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    if args.version:
        print(f"kd-lightning {version('kd_lightning')}")
        return
    if args.help:
        try:
            _print_help([args.config_dir] if args.config_dir else [])
        except UserError as error:
            _fail(error)
        return
    only_shows = any(getattr(args, flag) for flag in SHOWS)
    plans = False
    if not only_shows:
        try:
            plans = _refuse_wrong_overrides(args)
        except UserError as error:
            _fail(error)
    command = hydra.main(version_base="1.3", config_path=str(resolvers.conf_dir()), config_name="run")(_task)
    if not plans:
        command()
        return
    with tempfile.TemporaryDirectory(prefix="kd_plan_") as nowhere:
        # run the jobs one after the other, in this process, and write nothing to the run folders
        mine = ("hydra/launcher", "hydra.launcher", "hydra.run.", "hydra.sweep.", "hydra.output_subdir")
        sys.argv[1:] = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(mine)]
        sys.argv += ["hydra/launcher=basic", "hydra.output_subdir=null"]
        sys.argv += [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
        command()
    if len(_PLANS) > 1:
        from kd_lightning.planning.plan import altogether

        print(altogether(_PLANS), end="")


def _print_help(folders: Sequence[str]) -> None:
    """Print the help of ``conf/run.yaml``; Hydra would list every group first, which takes seconds."""
    from kd_lightning.config.overrides import loaded

    with loaded(folders):
        page = OmegaConf.load(resolvers.conf_dir() / "run.yaml").hydra.help.template
    print(Template(page).safe_substitute())


def _flags() -> ArgumentParser:
    """A parser for those of Hydra's flags that select the configuration to read, or run nothing."""
    parser = ArgumentParser(add_help=False, allow_abbrev=True)
    parser.add_argument("overrides", nargs="*")
    for name, short in {"multirun": "-m", "run": "-r", "help": "-h", "shell-completion": "-sc"}.items():
        parser.add_argument(f"--{name}", short, action="store_true")
    for name in ("hydra-help", "version", "resolve"):
        parser.add_argument(f"--{name}", action="store_true")
    for name, short in {"config-path": "-cp", "config-name": "-cn", "config-dir": "-cd", "cfg": "-c"}.items():
        parser.add_argument(f"--{name}", short)
    parser.add_argument("--package", "-p")
    parser.add_argument("--experimental-rerun")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    return parser


def _refuse_wrong_overrides(args: Namespace) -> bool:
    """Check the overrides of all jobs; returns whether any job only plans."""
    from kd_lightning.config.overrides import absent, jobs, misspelt_keys, read, refusal, swept

    folders = [args.config_dir] if args.config_dir else []
    each = jobs(args.overrides)
    plans = False
    lines = dict.fromkeys(_plugin_faults(args.overrides))  # an ordered set
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
        _import_lightly(found.cfg)
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


def _plugin_faults(overrides: Sequence[str]) -> Iterator[str]:
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


def _task(cfg: DictConfig) -> float | None:
    resolvers.register()  # a launcher may have brought this function to a process that main never saw
    config = HydraConfig.get()
    folder, place = Path(config.runtime.output_dir), start.placed()
    names = chosen(config.runtime.choices)
    if place is None or place.rank == 0:
        pair = " -> ".join(name for word in ("teacher", "student") if (name := names[word]) not in (None, "none"))
        said = f"{names['method']} on {names['data']} ({pair}), seed {cfg.seed}"
        print(said if cfg.plan else f"{said}: {_near(folder)}", file=sys.stderr, flush=True)
    if cfg.plan:
        _plan(cfg, names)
        return None
    from kd_lightning.results.run_lock import running

    with running(folder) if place is None or place.rank == 0 else nullcontext():
        return _run(cfg, folder, names)


def _run(cfg: DictConfig, folder: Path, names: Mapping[str, str | None]) -> float | None:
    _import_lightly(cfg)
    from kd_lightning.cli.summary import summary
    from kd_lightning.core.log_filters import plain_warnings, quiet
    from kd_lightning.distributed import decisions, process_group
    from kd_lightning.run.run import run

    quiet()
    place, mode = start.placed(), HydraConfig.get().mode
    try:
        composition = checked(cfg, names, folder)
        if place is None and (number := start.wanted(composition.trainer.settings)) > 1:
            return _on_ranks(number, composition, folder)
        plain_warnings()
        with process_group.losing():
            if place is not None:
                process_group.join(place, composition.device)
                folder = Path(decisions.decided(lambda: str(folder)))
            result = run(composition, folder)
            process_group.leave()
    except UserError as error:
        if mode == RunMode.MULTIRUN:
            raise CompactHydraException(str(error)) from error  # exiting would end the launcher's other jobs
        _fail(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if place is None or place.rank == 0:
        print(summary(result, _worth_opening(folder)), end="")
    return result["objective"]


def _import_lightly(cfg: DictConfig) -> None:
    from kd_lightning.core.light_imports import import_lightly

    if OmegaConf.select(cfg, "compile") is None:
        import_lightly(re.findall(r"_target_: *(\S+)", OmegaConf.to_yaml(cfg)))


def chosen(choices: Mapping[str, str | None] | DictConfig) -> dict[str, str | None]:
    """The member chosen of each group; for ``teacher=network network@teacher.net=NAME`` the network's name."""
    names = {name: choices.get(name) for name in NAMED}
    for word, place in {"teacher": "teacher.net", "student": "student"}.items():
        networks = [choices.get(key) for key in (f"network@{place}", f"network@{place}.net")]  # outer, inner
        names[word] = "/".join(filter(None, networks)) or names[word]
    return names


def checked(cfg: DictConfig, names: Mapping[str, str | None], folder: Path) -> Composition:
    """The composition of a run; if it is invalid, the reason is written to the run folder."""
    from kd_lightning.config.check import check
    from kd_lightning.results.provenance import header, leave_reason

    try:
        return check(cfg, names)
    except BaseException as error:
        place = start.placed()
        if place is None or place.rank == 0:
            leave_reason(folder, header(names, cfg.get("seed")), "failed", str(error) or type(error).__name__)
        raise


def _on_ranks(number: int, composition: Composition, folder: Path) -> float | None:
    """Start one process per device of the trainer, each of which runs this job."""
    from kd_lightning.results.provenance import header_of, leave_reason

    code, reason = start.start(HydraConfig.get(), number)
    if reason is not None:
        leave_reason(folder, header_of(composition), "stopped" if code == 130 else "failed", reason)
        print(reason if code == 130 else f"error: {reason}", file=sys.stderr)
    if code:
        sys.exit(code)
    return start.objective(folder)


def _plan(cfg: DictConfig, names: Mapping[str, str | None]) -> None:
    from kd_lightning.config.check import check
    from kd_lightning.core.log_filters import quiet
    from kd_lightning.planning.plan import plan, render

    quiet()
    try:
        made = plan(check(cfg, names), _PROMISED)
    except UserError as error:
        _fail(error)
    _PLANS.append((made.seconds, made.size))
    print(render(made))


def _worth_opening(folder: Path) -> list[Path]:
    near = _near(folder)
    grids = sorted((folder / "samples").glob("*.png"))
    names = [
        "result.json",
        "student.safetensors",
        "metrics.csv",
        "curves.png",
        *(f"samples/{g.name}" for g in grids[-1:]),
    ]
    return [near / name for name in names if (folder / name).is_file()]


def _near(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _fail(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(start.LOST if isinstance(error, RankLost) else 2)


if __name__ == "__main__":
    main()
