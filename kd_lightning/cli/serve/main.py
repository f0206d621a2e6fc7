"""``kd-serve``: a network as a query-only HTTP service. Imports no torch before the configuration is checked."""

from __future__ import annotations

import argparse
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.cli.entry import command
from kd_lightning.config import resolvers
from kd_lightning.errors import UserError

if TYPE_CHECKING:
    from kd_lightning.cli.serve.app import Service

COMPOSED = "data, teacher, experiment, scale, artifacts and trainer.accelerator as kd-lightning reads them, and:"
EXAMPLES = """examples:
  kd-serve teacher=small_conv teacher.access=label               of digits; trained first, unless it is kept already
  kd-serve data=mnist teacher=lenet5 teacher.weights=FILE teacher.access=probs teacher.decimals=3
  KEY=... kd-serve experiment=NAME teacher.access=topk teacher.k=3 key_env=KEY images_per_minute=6000

It is asked by kd-lightning teacher=http teacher.client.url=ADDRESS, or by anything that speaks HTTP:
  GET /describe, POST /ask, GET /count; kd_lightning/teachers/remote/protocol.py describes the format."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is in use or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen on host={host} port={port}: {reason}. Choose others, port=0 for any") from error


def address_of(listening: socket.socket) -> str:
    """The URL of the service."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def summary(address: str, service: Service, key_env: str | None) -> str:
    """One line: address, teacher, access level and limits."""
    teacher, limits = service.teacher, service.limits
    access = {"topk": f"topk ({teacher.k})"}.get(teacher.access, teacher.access)
    rounded = f" with {teacher.decimals} decimals" if teacher.decimals is not None else ""
    parts = [
        f"{address} answers for {teacher.name}, version {teacher.version}: {access}{rounded}",
        f"{teacher.num_classes} classes",
        "images {}x{}x{}".format(*service.shape),
        f"{teacher.max_batch} in a query",
        *([f"{limits.requests_per_minute:g} queries a minute"] if limits.requests_per_minute else []),
        *([f"{limits.images_per_minute:g} images a minute"] if limits.images_per_minute else []),
        f"key in {key_env}" if key_env else "no key",
    ]
    return ", ".join(parts)


def _warn_of_others(listening: socket.socket, key_env: str | None) -> None:
    host = listening.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        how = "with the key" if key_env else "without any key (set key_env=NAME)"
        warning = f"{host} is not a loopback address: other machines can send queries {how}"
        print(f"kd-serve: warning: {warning}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    own = (resolvers.conf_dir() / "serve.yaml").read_text().split("_self_\n")[1].strip().splitlines()
    settings = "\n".join("  " + line.replace(": ", "=", 1) for line in own)
    parser = argparse.ArgumentParser(
        prog="kd-serve",
        description="Serve a teacher over HTTP, for distillation from only its answers.",
        epilog=f"{COMPOSED}\n\n{settings}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="teacher=NAME and any other setting")
    parser.add_argument("--config-dir", metavar="DIR", action="append", default=[], help="groups of your own")
    return parser


@command("kd-serve")
def main(argv: Sequence[str] | None) -> None:
    """Serve until interrupted or terminated."""
    args = _parser().parse_args(argv)
    sys.path.append(str(Path.cwd()))  # finds a user's network in the working directory
    from kd_lightning.cli.serve.server import compose, service_of
    from kd_lightning.core.log_filters import quiet

    quiet()
    cfg = compose(args.overrides, args.config_dir)
    service = service_of(cfg)
    with closing(listen(cfg.host, cfg.port)) as listening:
        _serve(service, listening, cfg.key_env)


def _serve(service: Service, listening: socket.socket, key_env: str | None) -> None:
    from kd_lightning.cli.serve.app import server_of

    _warn_of_others(listening, key_env)
    print(summary(address_of(listening), service, key_env), flush=True)
    for ends in (signal.SIGINT, signal.SIGTERM):  # the server handles them and raises them again at its end
        signal.signal(ends, lambda *_: None)
    server_of(service).run(sockets=[listening])
    tally = service.tally
    print(f"kd-serve: answered {tally.questions} queries, {tally.images} images", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
