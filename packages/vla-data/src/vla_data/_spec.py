"""The RobotSpec of a LeRobot dataset: recorded by vla-data, or derived from its feature table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec

from vla_data._layout import SPEC_FILE, Layout
from vla_data._names import check_spec_names, read_json


def _camera(layout: Layout, name: str, feature: str) -> CameraSpec:
    entry = layout.features[feature]
    sizes = dict(zip(entry["names"] or ("height", "width", "channels"), entry["shape"], strict=True))
    return CameraSpec(name, int(sizes["height"]), int(sizes["width"]))


def _derived(layout: Layout) -> RobotSpec:
    """Without vla_spec.json the units are unknown: one group per vector, taken as absolute."""
    features = layout.features
    if "action" not in features:
        raise UserError(f"{layout.root}: the dataset has no feature 'action'")
    state = features.get("observation.state")
    return RobotSpec(
        observation=ObservationSpec(
            cameras=tuple(_camera(layout, name, key) for name, key in layout.cameras().items()),
            state=() if state is None else (GroupSpec("state", int(state["shape"][0]), "unknown"),),
        ),
        action=ActionSpec(
            groups=(GroupSpec("action", int(features["action"]["shape"][0]), "unknown"),),
            horizon=1,
            control_hz=layout.fps,
        ),
        embodiment=str(layout.info.get("robot_type") or "default"),
    )


def read_spec(layout: Layout, horizon: int, cameras: Sequence[str] | None) -> RobotSpec:
    """Spec of the dataset with ``horizon`` and the chosen ``cameras`` (None: all), without statistics.

    Raises:
        UserError: no cameras or actions, or a camera that was not recorded.
    """
    file = layout.root / SPEC_FILE
    if file.is_file():
        try:
            node = read_json(file, "a robot spec")
            check_spec_names(node, file)
            spec = RobotSpec.from_dict(node)
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: not a robot spec ({error!r}); remove it or repair it") from error
    else:
        spec = _derived(layout)
    found = layout.cameras()
    if not found:
        raise UserError(f"{layout.root}: no cameras stored as video; re-encode images with lerobot")
    names = list(found) if cameras is None else list(cameras)
    for name in names:
        if name not in found:
            raise ConfigError(f"cameras: {layout.root} has no camera '{name}'{suggest(name, found)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"cameras: name each camera once and at least one, got {names}")
    return replace(
        spec,
        observation=replace(
            spec.observation, cameras=tuple(_camera(layout, name, found[name]) for name in names)
        ),
        action=replace(spec.action, horizon=horizon),
    )
