"""Directories of openpi's own PyTorch conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vla_core.errors import UserError
from vla_core.specs import CameraSpec

from vla_train.importers.lerobot.published import (
    CONFIG,
    WEIGHTS,
    Fields,
    Published,
    Vector,
    number,
    read_json,
    tensor_names,
    vectors_in,
)

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
SIZE = 224
"""Cameras and image size, fixed in openpi's code."""

STATISTICS = "norm_stats.json"
ROOM = {"pi0": 48, "pi05": 200}
EPS = 1e-6


def is_openpi(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of openpi's conversion."""
    return "action_horizon" in config and "paligemma_variant" in config


def read(directory: Path, config: dict[str, Any]) -> Published:
    """The directory as a source; its config.json holds ``config``.

    Raises:
        UserError: a value of the wrong type, or statistics that cannot be read.
    """
    file = directory / CONFIG
    # The config does not tell the variant, the weights do.
    adaptive = "time_mlp_in.weight" in tensor_names(directory / WEIGHTS)
    variant: Literal["pi0", "pi05"] = "pi05" if adaptive else "pi0"
    dims = int(number(config, "action_dim", file))
    notes = ["images: resized into black margins with antialiasing, as openpi's transforms do"]
    found = sorted((directory / "assets").glob(f"**/{STATISTICS}"))
    fields: dict[str, Fields] = {}
    if len(found) == 1:
        fields = statistics(found[0])
        notes.append(f"statistics: {found[0]}")
    elif found:
        names = ", ".join(str(f.relative_to(directory)) for f in found)
        notes.append(f"statistics: the directory has several ({names}); --stats chooses")
    mode: Literal["q99", "mean_std"] = "q99" if adaptive else "mean_std"
    return Published(
        directory=directory,
        origin="openpi",
        variant=variant,
        horizon=int(number(config, "action_horizon", file)),
        cameras=tuple(CameraSpec(name, SIZE, SIZE) for name in CAMERAS),
        state=Vector("state", None, mode, fields.get("state"), eps=EPS),
        action=Vector("actions", None, mode, fields.get("action"), eps=EPS),
        head={"max_action_dim": dims, "max_state_dim": dims},
        image_size=(SIZE, SIZE),
        antialias=True,
        clean=True,
        max_text_tokens=ROOM[variant],
        notes=notes,
    )


def statistics(file: Path) -> dict[str, Fields]:
    """What a ``norm_stats.json`` says about state and actions.

    Raises:
        UserError: it is none.
    """
    data = read_json(file).get("norm_stats")
    if not isinstance(data, dict):
        raise UserError(f"{file}: has no 'norm_stats', so it is not openpi's statistics")
    return vectors_in(data, file, {"state": "state", "action": "actions"})
