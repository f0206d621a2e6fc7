"""SimKD's student (Chen et al., CVPR 2022): another network's classifier on features that are projected to its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks import head_of
from kd_lightning.networks.places import pool_of


class ReusedHead(nn.Module):
    """A network without its pooling and head, a projector to a teacher's last maps, and the teacher's head.

    (N, C, H, W) -> (N, num_classes). The projector is 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU, of
    ``1 / factor`` of the teacher's channels inside; maps that are larger than the teacher's are averaged first.

    Args:
        trunk: the network that is used up to its last maps.
        teacher: a network of the teacher's kind; only its head stays, with weights of its own until
            the teacher's are copied into it.
        image: (C, H, W) of the images.
        factor: see above.
    """

    def __init__(self, *, trunk: nn.Module, teacher: nn.Module, image: Sequence[int], factor: int = 2) -> None:
        super().__init__()
        head = teacher.get_submodule(head_of(teacher))
        (channels, *size), (wanted, *wanted_size) = (_open(net, image) for net in (trunk, teacher))
        if getattr(head, "in_features", wanted) != wanted:
            raise ValueError(
                f"the classifier of {type(teacher).__name__} takes {head.in_features} values and its last map has "
                f"{wanted} channels: take a teacher that averages each channel"
            )
        self.shape = (channels, *size)
        self.largest = wanted_size[0], wanted_size[1]
        inside = wanted // factor
        self.trunk = trunk
        self.projector = nn.Sequential(
            *_convolved(channels, inside, 1), *_convolved(inside, inside, 3), *_convolved(inside, wanted, 1)
        )
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        maps = self.trunk(x).unflatten(1, self.shape)
        if maps.shape[2] > self.largest[0]:
            maps = F.adaptive_avg_pool2d(maps, (self.largest[0], self.largest[1]))
        logits: Tensor = self.head(self.projector(maps).mean((2, 3)))
        return logits


def _open(net: nn.Module, image: Sequence[int]) -> tuple[int, ...]:
    """Take the pooling and the head from a network, which then returns its last maps flat; their shape."""
    seen = list[tuple[int, ...]]()
    pool = net.get_submodule(pool_of(net))
    handle = pool.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[1:])))
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, *image))
    handle.remove()
    for path in (pool_of(net), head_of(net)):
        net.set_submodule(path, nn.Identity())
    net.train(training)
    return seen[0]


def _convolved(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
