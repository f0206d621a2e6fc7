"""A teacher's network from its weights file, and its key."""

from __future__ import annotations

from kd_lightning.config.composition import OWN, TeacherSettings
from kd_lightning.config.node import thaw
from kd_lightning.config.signatures import own_code
from kd_lightning.core.user_code import fingerprint
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.store.artifacts import by_content
from kd_lightning.store.files import digest, file_digest


def load_net(settings: TeacherSettings) -> tuple[Normalized, str]:
    """Load a teacher's network from its weights file; returns the network and its digest."""
    assert settings.net is not None
    assert settings.weights is not None
    as_read = {k: getattr(settings, k) for k in ("mean", "std", "class_order", "outputs", "size")}
    net = Normalized(settings.net.build(), **as_read)
    kept = {"net": by_content(thaw(settings.net), ""), **{k: thaw(v) for k, v in as_read.items()}}
    if settings.weights == OWN:
        kept["weights"] = fingerprint(net.net)
    else:
        load_weights(net, settings.weights)
        kept["weights"] = file_digest(settings.weights)
    return net, digest({**kept, "code": code} if (code := code_of(settings)) else kept)


def code_of(settings: TeacherSettings) -> list[dict[str, str]]:
    """The code behind a teacher, as a part of its key: nothing for classes of this package."""
    theirs = own_code({key: thaw(getattr(settings, key)) for key in ("net", "client")})
    return [theirs] if theirs else []
