"""The command ``kd-lightning``: Hydra composes, ``run`` runs. Imports no torch before a run starts."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd_lightning.cli.entry import writing_to_a_pipe
from kd_lightning.cli.refusals import import_for, refuse_wrong_overrides
from kd_lightning.config import resolvers
from kd_lightning.distributed import launch as start
from kd_lightning.distributed.beside import Beside, is_beside
from kd_lightning.errors import RankLost, UserError

if TYPE_CHECKING:
    from kd_lightning.config.composition import Composition

NAMED = ("data", "source", "teacher", "student", "method", "scale", "experiment")
SHOWS = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
"""Flags that print something and run nothing."""

_PLANS: list[tuple[float, int]] = []
"""Seconds and bytes of each planned job."""
_PROMISED: set[str] = set()
_alone = True
"""Whether no other command started this one as a part of it."""


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
    global _alone
    _alone = not start.stay_with_parent()
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
            plans = refuse_wrong_overrides(args)
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


def _task(cfg: DictConfig) -> float | None:
    resolvers.register()  # a launcher may have brought this function to a process that main never saw
    config = HydraConfig.get()
    folder, place = Path(config.runtime.output_dir), start.placed()
    names = chosen(config.runtime.choices)
    if is_beside():
        import_for(cfg)
        from kd_lightning.run.second_process import train_controls

        train_controls(_ready(cfg, names, folder))
        return None
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
    from kd_lightning.cli.summary import summary
    from kd_lightning.config.record import whole
    from kd_lightning.results.recall import circumstances, recalled, remember

    place, mode = start.placed(), HydraConfig.get().mode
    plain = whole(cfg, names) if place is None else None
    key = circumstances(plain) if plain else None
    if plain and (kept := recalled(key, plain, folder)) is not None:
        print(summary(kept, _worth_opening(folder)), end="")
        return kept["objective"]

    import_for(cfg)
    from kd_lightning.core.log_filters import plain_warnings
    from kd_lightning.distributed import decisions, process_group
    from kd_lightning.run.run import run

    try:
        composition = _ready(cfg, names, folder)
        if place is None and (number := start.wanted(composition.trainer.settings)) > 1:
            return _on_ranks(number, composition, folder)
        plain_warnings()
        with process_group.losing():
            if place is not None:
                process_group.join(place, composition.device)
                folder = Path(decisions.decided(lambda: str(folder)))
            with _second_process(composition, cfg.side_by_side) as beside:
                result = run(composition, folder, beside)
            process_group.leave()
    except UserError as error:
        if mode == RunMode.MULTIRUN:
            raise CompactHydraException(str(error)) from error  # exiting would end the launcher's other jobs
        _fail(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if plain:
        remember(key, plain, result["run_kept"])
    if place is None or place.rank == 0:
        print(summary(result, _worth_opening(folder)), end="")
    return result["objective"]


def _ready(cfg: DictConfig, names: Mapping[str, str | None], folder: Path) -> Composition:
    """The composition of a run, in a process that is set for it; writes the reason if it is invalid."""
    from kd_lightning.core.log_filters import quiet
    from kd_lightning.core.sides import sides
    from kd_lightning.distributed.device import spare_threads

    quiet()
    composition = checked(cfg, names, folder)
    spare_threads(*sides(composition.data.size))
    return composition


def _second_process(composition: Composition, wanted: bool) -> AbstractContextManager[Beside | None]:
    """The process that trains controls meanwhile; none in a sweep, on ranks, on GPUs, or where it would be no help."""
    from kd_lightning.distributed.device import room_for_another
    from kd_lightning.run.second_process import independent

    hydra, kept = HydraConfig.get(), composition.artifacts
    mine = wanted and _alone and start.placed() is None and hydra.mode == RunMode.RUN and room_for_another()
    anew = not kept.reuse and kept.scope == "all"  # then it cannot take what the other one made
    if not mine or anew or composition.device != "cpu" or not (names := independent(composition)):
        return nullcontext()
    return Beside(start.command_of(hydra), [*names])


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
    from kd_lightning.core.sides import sides
    from kd_lightning.distributed.device import spare_threads
    from kd_lightning.planning.plan import plan, render

    quiet()
    try:
        composition = check(cfg, names)
        spare_threads(*sides(composition.data.size))
        made = plan(composition, _PROMISED)
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
