"""How far the statistics of a batch are from the running statistics of a teacher's batch norms."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kd_lightning.losses.moments import MeanVar, mean_var


class BatchNormTap:
    """Statistics of the input of each BatchNorm of `net`, recorded inside the `with` block.

        with BatchNormTap(teacher) as tap:
            logits = teacher(images)
        loss = batch_norm_statistics(tap.statistics, tap.layers)

    The statistics keep their graph, so gradients reach the images. Another forward pass replaces them;
    entering again clears them. Outside the block the net has no hook; inside, compiled nets run in eager mode,
    because compiled code does not call hooks.

    Raises:
        ValueError: `net` has no BatchNorm with running statistics.
    """

    def __init__(self, net: nn.Module) -> None:
        self._watched = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not self._watched:
            raise ValueError(
                f"{type(net).__name__} has no BatchNorm with running statistics, so there is nothing "
                "to match: choose a teacher with BatchNorm or a method that does not need it"
            )
        self._seen: dict[_BatchNorm, MeanVar] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def layers(self) -> list[_BatchNorm]:
        """The BatchNorms that have run, in the order in which they ran."""
        return list(self._seen)

    @property
    def statistics(self) -> list[MeanVar]:
        """Mean and biased variance (C,) per channel, one pair for each of `layers`, in fp32."""
        return list(self._seen.values())

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("this BatchNormTap is already entered")
        self._seen.clear()
        self._handles = [layer.register_forward_pre_hook(self._keep) for layer in self._watched]
        self._as_written = torch.compiler.set_stance("force_eager")
        self._as_written.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._as_written.__exit__(kind, error, trace)
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        self._seen[layer] = mean_var(args[0].float())


def batch_norm_statistics(
    statistics: Sequence[MeanVar],
    layers: Sequence[_BatchNorm],
    *,
    ema: Sequence[MeanVar] | None = None,
    momentum: float = 0.0,
    first_layer_weight: float = 1.0,
) -> Tensor:
    """Sum over layers of ||mean - running mean|| + ||var - running var||; norms, not squared norms.

    DeepInversion (Yin et al., CVPR 2020). In FastDFKD (Fang et al., AAAI 2022) the batch has to explain only
    a part of the running statistics: (1-r) mean + r ema replaces mean, and the same for var.

    Args:
        statistics: mean and biased variance (C,) of each BatchNorm's input, see `BatchNormTap`.
        layers: the BatchNorms, in the same order. No gradient reaches their buffers.
        ema: running averages of earlier `statistics`; None (the first round of FastDFKD) takes r = 0.
        momentum: r, in [0,1).
        first_layer_weight: factor of the first layer, 10 for ImageNet in DeepInversion's code.

    Raises:
        ValueError: no layer (an empty sum would silently be 0), or lengths that differ.
    """
    if not layers or len(statistics) != len(layers) or (ema is not None and len(ema) != len(layers)):
        raise ValueError(
            f"need at least one BatchNorm and statistics for each: {len(statistics)} for {len(layers)} layers"
            + ("" if ema is None else f" and {len(ema)} averages")
        )
    distances = []
    for index, ((mean, var), layer) in enumerate(zip(statistics, layers, strict=True)):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        if ema is not None:
            past_mean, past_var = ema[index]
            mean = torch.lerp(mean, past_mean.detach(), momentum)
            var = torch.lerp(var, past_var.detach(), momentum)
        distance = torch.linalg.vector_norm(mean - layer.running_mean.detach()) + torch.linalg.vector_norm(
            var - layer.running_var.detach()
        )
        distances.append(distance * first_layer_weight if index == 0 else distance)
    return torch.stack(distances).sum()
