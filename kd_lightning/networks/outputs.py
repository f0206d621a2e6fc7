"""What networks answer with: any usual kind of output as one tensor, and probabilities as logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.core.sides import Size, sides
from kd_lightning.errors import TeacherError

Kind = Literal["logits", "probabilities", "sigmoid", "one_logit"]
KINDS = get_args(Kind)
NAMED = ("logits", "out", "output", "prediction", "predictions", "pred", "scores", "y", "x")
"""Keys of the classes' scores in a mapping, the likeliest first."""
LEAST = 1e-7


def one_tensor(output: Any) -> Tensor:
    """The scores in a network's output, one row an image.

    Args:
        output: a tensor; a mapping or ModelOutput with ``logits`` or one tensor only; or a tuple, whose first tensor
            counts: auxiliary heads and features follow it.

    Raises:
        TeacherError: there is no such tensor in it.
    """
    if isinstance(output, Tensor | torch.fx.Proxy):
        # a map of one pixel, as of a network that ends in a convolution
        of_one_pixel = isinstance(output, Tensor) and output.shape[2:] == (1, 1)
        return cast(Tensor, output.flatten(1) if of_one_pixel else output)
    if isinstance(output, Mapping):
        named = [output[key] for key in NAMED if key in output]
        tensors = named or [value for value in output.values() if isinstance(value, Tensor)]
        if len(named) == 1 or len(tensors) == 1 or (named and isinstance(named[0], Tensor)):
            return one_tensor(tensors[0])
        raise TeacherError(f"the network answers with a mapping of {', '.join(map(str, output))}, none called logits")
    if isinstance(output, tuple | list) and output:
        return one_tensor(output[0])
    if isinstance(scores := getattr(output, "logits", None), Tensor):
        return one_tensor(scores)
    raise TeacherError(f"the network answers with {type(output).__name__}, expected a tensor of logits (N, classes)")


def as_logits(output: Tensor, kind: str) -> Tensor:
    """Logits (N, K) of what a network answers.

    Args:
        output: (N, K), or (N, 1) or (N,) for two classes.
        kind: ``logits``; ``probabilities`` that sum to 1, or one, that of the second class; ``sigmoid``, a probability
            for each class by itself; ``one_logit``, the second class's against the first.
    """
    if kind == "logits":
        return output
    if output.dim() == 1:
        output = output[:, None]
    if kind == "one_logit" or output.shape[1] == 1:
        logit = output if kind == "one_logit" else _logit(output)
        return torch.cat([torch.zeros_like(logit), logit], 1)
    return _logit(output) if kind == "sigmoid" else output.clamp_min(LEAST).log()


def _logit(p: Tensor) -> Tensor:
    return torch.special.logit(p, eps=LEAST)


def kind_of(output: Tensor, classes: int) -> Kind:
    """What a network's answers to at least some tens of different images are.

    Args:
        output: as it answers, (N, K), (N, 1) or (N,).
        classes: K.
    """
    within = bool((output >= 0).all() and (output <= 1).all())
    if output.dim() == 1 or (output.shape[1] == 1 and classes == 2):
        return "probabilities" if within else "one_logit"
    if within and bool(torch.allclose(output.float().sum(1), torch.ones(len(output)), atol=5e-3)):
        return "probabilities"
    saturated = len(output) >= 16 and bool(output.max() > 0.9 and output.min() < 0.1)
    return "sigmoid" if within and saturated else "logits"


def resized(x: Tensor, size: Size | None) -> Tensor:
    """Images (N, C, H, W) resized to ``size``, bilinear with antialiasing; unchanged if None or if they have it.

    Args:
        x: the images.
        size: height and width, or one number for both.
    """
    if size is None or tuple(x.shape[2:]) == sides(size):
        return x
    return F.interpolate(x, sides(size), mode="bilinear", antialias=True, align_corners=False)
