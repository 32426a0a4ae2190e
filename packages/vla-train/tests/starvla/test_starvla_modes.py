"""How a StarVLA YAML's data are normalised: the modes of its data configs, per group."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.transforms.normalize import Normalize, NormalizeConfig
from vla_train.dialects.starvla.mixtures import MIXTURES
from vla_train.spellings import load_run

DIMS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def _normalized(tree, actions, state):
    """What the translated normalize step makes of vectors of seven groups, and back."""
    (step,) = [s for s in tree.data["framework"]["transforms"] if s["name"] == "normalize"]
    groups = tuple(GroupSpec(name, 1, "m") for name in DIMS)
    low, high = np.arange(7.0) - 8, np.arange(7.0) * 2
    stats = VectorStats(
        mean=np.zeros(7), std=np.ones(7), min=low, max=high, q01=low / 2, q99=high / 2 + 1, count=9
    )
    low[6], high[6] = 0.0, 1.0
    spec = RobotSpec(
        ObservationSpec((CameraSpec("c", 2, 2),), groups),
        ActionSpec(groups, 1, 5.0),
        NormStats({"state": stats, "action": stats}),
    )
    normalize = Normalize(build_config(NormalizeConfig, {k: v for k, v in step.items() if k != "name"}), spec)
    made = normalize.actions(actions, None)
    return made, normalize.state(state), normalize.inverse(made, None), low, high


def test_libero_is_normalised_as_in_starvlas_data_config(theirs):
    """min_max on six dims, the gripper raw; its state, which no transform there touches, raw as well."""
    actions, state = np.float32([[0.5, -1, 2, 3, 4, 0.25, 0.7]]), np.float32([1, 2, 3, 4, 5, 6, 7])
    tree = load_run([theirs(datasets__vla_data__include_state=True)])
    made, kept, back, low, high = _normalized(tree, actions, state)
    expected = 2 * (actions - low) / (high - low) - 1
    np.testing.assert_allclose(made[:, :6], expected[:, :6], atol=1e-6)
    assert made[0, 6] == np.float32(0.7)
    np.testing.assert_array_equal(kept, state)
    np.testing.assert_allclose(back, actions, atol=1e-5)


def test_bridge_clips_q99_and_has_a_binary_gripper_in_both_vectors(theirs):
    actions, state = np.float32([[99, -1, 2, 3, 4, 0.25, 0.7]]), np.float32([1, 2, 3, 4, 5, 6, 0.3])
    file = theirs(datasets__vla_data__data_mix="bridge", datasets__vla_data__include_state=True)
    made, kept, back, low, high = _normalized(load_run([file]), actions, state)
    low, high = low / 2, high / 2 + 1
    expected = np.clip(2 * (actions - low) / (high - low) - 1, -2.2, 2.2)
    np.testing.assert_allclose(made[:, :6], expected[:, :6], atol=1e-6)
    assert (made[0, 6], kept[6], back[0, 6]) == (1.0, 0.0, 1.0)


def test_modes_of_other_mixtures(theirs):
    def normalize(**changes):
        lines: list[str] = []
        tree = load_run([theirs(**changes)], ["datasets.train=[{name: toy}]"] * own, lines.append)
        (step,) = [s for s in tree.data["framework"]["transforms"] if s["name"] == "normalize"]
        return step, next(line for line in lines if "framework.transforms=[" in line)

    own = 1
    step, line = normalize()
    assert (step["action"], step["groups"]) == ("q99", {})
    assert "q99 for every group: datasets.train is set; there: " in line
    assert "'action.gripper': 'none'" in line
    own = 0
    mix = "datasets__vla_data__data_mix"
    step, _ = normalize(**{mix: "arx_x5"})
    assert (step["action"], step["groups"]["action.left_gripper"]) == ("min_max", "binary")
    assert "state.left_gripper" not in step["groups"], "the state is dropped"
    step, _ = normalize(**{mix: "robocasa365_open_drawer_target_human"})
    assert (step["action"], step["state"]) == ("min_max", "none")
    with pytest.raises(ConfigError, match=r"starvla.yaml:\d+: .*include_state: StarVLA gives sine"):
        normalize(**{mix: "robocasa365_open_drawer_target_human"}, datasets__vla_data__include_state=True)


def test_every_mixture_writes_a_valid_step():
    for name, (modes, folders) in MIXTURES.items():
        for with_state in (True, False):
            step = modes.step(with_state)
            build_config(NormalizeConfig, {k: v for k, v in step.items() if k != "name"})
            assert all(key.split(".")[0] in ("action", "state") for key in step["groups"]), name
        assert len(set(folders)) == len(folders)
