"""What split computing sends of an image, in bytes."""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_lightning.networks.classifiers.split import SplitNetwork


class Transfer:
    """A metric: bytes that a device sends to the server of one image, and of the image itself, a byte a value."""

    needs = frozenset[str]()

    def __call__(self, network: nn.Module | None, teacher: Any, test: Any, **where: Any) -> dict[str, float | None]:
        """``code`` and ``image``; no ``code`` of a network that is not split."""
        split = getattr(network, "net", None)
        sent = float(split.bytes_an_image) if isinstance(split, SplitNetwork) else None
        return {"code": sent, "image": float(test.images[0].numel())}
