"""A robot file that names other dims and cameras than the data set does: perhaps it is another one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vla_data.formats.features import Features, camera_name, dim_names
from vla_data.robot.config import GroupConfig
from vla_data.robot.guess import GRIPPER, kind_of


def odd_grippers(
    which: str, groups: Sequence[GroupConfig], keys: Sequence[str], features: Features
) -> Iterator[str]:
    """A line for each gripper that is made of dims which the data set calls otherwise, while it has one."""
    for group, key in zip(groups, keys, strict=True):
        names = dim_names(features[key])
        if group.gripper == "none" or names is None:
            continue
        own = names[group.start : group.end]
        called = [name for name in names if kind_of(name)[1] == GRIPPER]
        if called and not set(own) & set(called):
            yield (
                f"{which} '{group.name}' is a gripper and made of {', '.join(own)} of '{key}', whose gripper "
                f"is called {', '.join(called)}; is the robot file of this data set?"
            )


def odd_cameras(cameras: Mapping[str, str], features: Features) -> Iterator[str]:
    """A line for each camera (name -> feature) that has the name of another feature of the data set."""
    own = {camera_name(key): key for key in features if features[key]["dtype"] in ("video", "image")}
    for name, key in cameras.items():
        if own.get(name, key) != key:
            yield f"camera '{name}' shows '{key}', and the data set has '{own[name]}'; are they swapped?"
