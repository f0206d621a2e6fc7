"""``python -m kd_lightning``: the command ``kd-lightning``."""

from kd_lightning.cli.main import main

main()
