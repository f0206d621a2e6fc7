"""Plain networks: classifiers map images (N,C,H,W) to logits (N,K), generators map latents (N,Z) to images.

A classifier expects images that are already normalised. Its head is the part whose input is the penultimate
feature vector; `head_of` finds it in our networks and in others' (torchvision, timm).
"""

from torch import nn

_HEAD_NAMES = ("head", "fc", "classifier")


def head_of(net: nn.Module) -> str:
    """Module path of the head of `net`, for `net.get_submodule` and for hooks.

    A submodule called head, fc or classifier is the head, at whatever depth (a wrapper may hold the
    classifier); the shallowest one wins, then the order of those names. Where there is none, the last
    nn.Linear is taken.

    Raises:
        ValueError: no such submodule and no nn.Linear.
    """
    paths = [path for path, _ in net.named_modules() if path.rpartition(".")[2] in _HEAD_NAMES]
    if paths:
        return min(paths, key=lambda path: (path.count("."), _HEAD_NAMES.index(path.rpartition(".")[2])))
    linears = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(
            f"{type(net).__name__} has no head: looked for a submodule named {', '.join(_HEAD_NAMES)} "
            "and for an nn.Linear; give the module path of the head"
        )
    return linears[-1]
