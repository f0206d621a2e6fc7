"""The command ``kd-lightning``: Hydra composes, one page runs. Imports no torch before a run starts."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from kd_lightning import resolvers
from kd_lightning.errors import UserError

NAMED = ("data", "source", "teacher", "student", "method", "scale", "experiment")


def main() -> None:
    """Read the command line, refuse what is wrong in it, and hand over to Hydra."""
    resolvers.register()
    args = get_args_parser().parse_args()
    only_shows = any(getattr(args, flag) for flag in ("help", "hydra_help", "cfg", "info", "shell_completion"))
    if not only_shows:
        try:
            _refuse_wrong_overrides(args.overrides, [args.config_dir] if args.config_dir else [])
        except UserError as error:
            _fail(error)
    hydra.main(version_base="1.3", config_path=str(resolvers.conf_dir()), config_name="run")(_task)()


def _refuse_wrong_overrides(overrides: list[str], config_dirs: list[str]) -> None:
    from kd_lightning.composition import jobs, read
    from kd_lightning.errors import ConfigError

    for job in jobs(overrides)[:32]:
        cfg, problems = read(job, config_dirs)
        if problems:
            from kd_lightning.check import faults

            raise ConfigError("this composition cannot run:\n  " + "\n  ".join([*problems, *faults(cfg)]))


def _task(cfg: DictConfig) -> float | None:
    from kd_lightning.quiet import quiet

    quiet()
    from kd_lightning.report import summary
    from kd_lightning.run import run

    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    names = {name: config.runtime.choices.get(name) for name in NAMED}
    try:
        result = run(cfg, folder, names)
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    print(summary(result, _worth_opening(folder)), end="")
    return result["objective"]


def _worth_opening(folder: Path) -> list[Path]:
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    grids = sorted((folder / "samples").glob("*.png"))
    names = ["result.json", "student.safetensors", "metrics.csv", *(f"samples/{g.name}" for g in grids[-1:])]
    return [near / name for name in names if (folder / name).is_file()]


def _fail(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
