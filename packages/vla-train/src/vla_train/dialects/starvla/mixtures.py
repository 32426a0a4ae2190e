"""StarVLA's named mixtures and data configs: which data sets, and how each robot's vectors are normalised.

They stand in its code (``examples/*/train_files/data_registry/data_config.py`` as of August 2026), under the
group names of the data sets' ``meta/modality.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP = 2.2
"""Where StarVLA clamps what q99 gives."""


@dataclass(frozen=True)
class Modes:
    """How a data config normalises.

    Args:
        action, state: mode of all groups but ``groups``; ``none``: they stay raw.
        groups: ``action.NAME`` or ``state.NAME`` -> mode.
        sin_cos: the state is replaced by its sine and cosine.
    """

    action: str
    state: str = "none"
    groups: Mapping[str, str] = field(default_factory=dict)
    sin_cos: bool = False

    def step(self, with_state: bool) -> dict[str, Any]:
        """The ``normalize`` step; ``with_state=False``: whatever becomes of the state is dropped after it."""
        groups = {key: mode for key, mode in self.groups.items() if with_state or key.startswith("action.")}
        state = self.state if with_state else "none"
        modes = {self.action, state, *groups.values()}
        # One clip holds for all groups: only where no other mode could be cut by it.
        clip = CLIP if "q99" in modes and "mean_std" not in modes else 0.0
        return {"name": "normalize", "state": state, "action": self.action, "groups": groups, "clip": clip}


def _grippers(mode: str, *names: str) -> dict[str, str]:
    return {f"{vector}.{name}": mode for vector in ("action", "state") for name in names}


Q99 = Modes("q99", "q99")
LIBERO = Modes("min_max", groups={"action.gripper": "none"})
OXE = Modes("q99", "q99", _grippers("binary", "gripper"))
AGILEX = Modes("min_max", "min_max", _grippers("binary", "left_gripper", "right_gripper"))
SIN_COS = Modes("min_max", sin_cos=True)
ALL_MIN_MAX = Modes("min_max", "min_max")
FRANKA = Modes("min_max", "min_max", {"action.gripper_close": "binary"})
REALMAN = Modes("mean_std", "mean_std", {"action.gripper_close": "min_max", "state.gripper": "min_max"})

_LIBERO = tuple(f"libero_{suite}_no_noops_1.0.0_lerobot" for suite in ("object", "goal", "spatial", "10"))
_BRIDGE, _RT1 = "bridge_orig_1.0.0_lerobot", "fractal20220817_data_0.1.0_lerobot"
_CHALLENGE = "robochallenge_table30v2"

MIXTURES: dict[str, tuple[Modes, tuple[str, ...]]] = {
    "libero_all": (LIBERO, _LIBERO),
    "libero_goal": (LIBERO, _LIBERO[1:2]),
    "multi_robot": (LIBERO, (f"LEROBOT_LIBERO_DATA/{_LIBERO[3]}",)),
    "openpi_libero_all": (Q99, _LIBERO),
    **{f"vla_arena_L0_{size}": (LIBERO, (f"VLA_Arena_L0_{size}_lerobot_openpi",)) for size in "SML"},
    "bridge": (OXE, (_BRIDGE,)),
    "bridge_rt_1": (OXE, (_BRIDGE, _RT1)),
    "metaworld_mt50": (Modes("min_max"), ("metaworld_mt50_lerobot",)),
    "robodojo_v21_all_h50_q99": (Q99, ("RoboDojo_lerobot_v21_video",)),
    "unitree_g1_test_sonic": (Q99, ("test_sonic",)),
    "arx_x5": (AGILEX, ("arx_x5",)),
    **{
        name: (AGILEX, ())
        for name in (
            "robotwin", "robotwin_all", "robotwin_all_50", "robotwin_task1", "robotwin_task2",
            "domino", "domino_clean", "domino_random", "domino_cotrain",
        )
    },
    "fourier_gr1_unified_1000": (SIN_COS, ()),
    "robocasa365_open_drawer_target_human": (SIN_COS, ("v1.0/target/atomic/OpenDrawer/20250816/lerobot",)),
    **{f"robocasa365_{kind}target_human_all": (SIN_COS, ()) for kind in ("", "atomic_", "composite_")},
    f"{_CHALLENGE}_shred_paper": (ALL_MIN_MAX, ("lerobot/shred_paper",)),
    **{f"{_CHALLENGE}_{robot}_all": (ALL_MIN_MAX, ()) for robot in ("ur5", "arx5", "dosw1")},
    "SO101_pick": (ALL_MIN_MAX, ()),
    **{name: (FRANKA, ()) for name in ("custom_dataset", "custom_dataset_2", "demo_sim_pick_place")},
    **{name: (REALMAN, ()) for name in ("realman_example", "realman_example_dp")},
}  # fmt: skip
"""``data_mix`` -> how it is normalised, and its folders, of equal weights; none: many, or the user's own."""
