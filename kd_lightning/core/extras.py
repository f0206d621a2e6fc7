"""Names the command that installs what is missing."""

from __future__ import annotations

from importlib.util import find_spec


def install(extra: str) -> str:
    """The command that adds an extra of this package, from a checkout and from a wheel alike.

    The installed package knows its extras, so the command fetches nothing else; an environment of uv has no pip.
    """
    return install_package(f"'kd-lightning[{extra}]'")


def install_package(name: str) -> str:
    """The command that installs a package into this environment."""
    return f"{'pip' if find_spec('pip') else 'uv pip'} install {name}"
