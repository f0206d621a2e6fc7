"""A white-box teacher inside a LightningModule, protected from training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.distributed.collectives import world
from kd_lightning.errors import TeacherError


class FrozenTeacher(nn.Module):
    """Follows its owner to a device or dtype, but adds no parameter, buffer or checkpoint key to it.

    It stays in eval mode. Gradients pass through it to the images and never reach its weights.

    Args:
        net: images (N, C, H, W) in [0, 1] -> logits (N, K); put in eval mode and frozen.
    """

    access = "white"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._held = [net.eval().requires_grad_(False)]
        self._only_in_net: list[nn.Module] = []
        self.asked = 0

    @property
    def net(self) -> nn.Module:
        """The network itself, for methods that read its features or batch-norm statistics."""
        return self._held[0]

    def standardise(self, x: Tensor) -> Tensor:
        """The network's input for images x (N, C, H, W) in [0, 1]: (x - mean) / std per channel."""
        net: Any = self.net
        return net.standardise(x)

    def fold_batchnorm(self) -> None:
        """Answer with a copy of the network whose batch norms are folded into the convolutions before them.

        It shares all other layers with ``net``. ``net`` itself answers while a hook sits on a layer that only it has.

        Raises:
            TeacherError: the network has batch norms, but its forward cannot be traced.
        """
        if not any(isinstance(module, _BatchNorm) for module in self.net.modules()):
            return
        try:
            folded = fuse(self.net, inplace=True)  # a new graph; "in place" only means that layers are not copied
        except Exception as error:  # a forward may raise anything when traced
            reason = str(error).partition(". ")[0]
            name = type(getattr(self.net, "net", self.net)).__name__
            raise TeacherError(
                f"fold_batchnorm: torch.fx cannot trace {name}: {reason}. Type fold_batchnorm=false"
            ) from error
        shared = set(folded.modules())
        self._held[1:] = [folded]
        self._only_in_net = [module for module in self.net.modules() if module not in shared]

    def compile_with(self, backend: str) -> None:
        """Compile the networks that answer, each at its first call."""
        for net in self._held:
            net.compile(backend=backend)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenTeacher:
        for net in self._held:
            net._apply(fn)
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Answer images (N, C, H, W) in [0, 1] with logits (N, K)."""
        self.asked += len(x) * world()
        watched = any(module._forward_hooks or module._forward_pre_hooks for module in self._only_in_net)
        answers: Tensor = (self.net if watched else self._held[-1])(x)
        return answers
