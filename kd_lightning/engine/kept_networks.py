"""What a fit leaves in its folder: its networks and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kd_lightning.core.file_format import FORMAT_VERSION
from kd_lightning.core.tasks import Task
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.weights import write_weights
from kd_lightning.store.files import write_json, writing


def keep_networks(method: Distiller, report: dict[str, Any], work: Path) -> None:
    """Write the student, the networks beside it that the method keeps, and ``fit.json``."""
    with writing(work):
        _save_net(method.student, work / "student.safetensors")
        for name in method.keeps:
            if hasattr(method, name):
                _save_net(cast(nn.Module, getattr(method, name)), work / f"{name}.safetensors")
        for name, net in (method.kept_modules() if isinstance(method, Distill) else {}).items():
            _save_net(net, work / f"{name}.safetensors")
    write_json(work / "fit.json", report)


def _save_net(net: nn.Module, file: Path) -> None:
    state = {k: v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}
    write_weights(state, file, {"format_version": str(FORMAT_VERSION)})


@torch.no_grad()
def agreement_on_drawn(method: Any, task: Task, seed: int, n: int = 1000) -> float:
    """Agreement of student and teacher on images that the method draws, the same in a resumed fit."""
    method.reseed(seed)
    method.student.eval()
    agreement = task.agreement().to(method.device)
    for _ in range(10):
        x = method.draw(n // 10)
        agreement.update(method.student(x), method.teacher.net(x))
    return float(agreement.compute())
