"""The members of the configuration's groups."""

from __future__ import annotations


def members(group: str) -> list[str]:
    """Every member of a group, those in its folders as ``folder/name``; Hydra must be initialised."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options(group, ObjectType.CONFIG)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        names += [f"{folder}/{name}" for name in members(f"{group}/{folder}")]
    return sorted(set(names))
