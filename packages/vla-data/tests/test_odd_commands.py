"""Actions that do not move with the state as their description says: said before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from vla_core.specs import GroupSpec
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.robot.odd_commands import odd_commands

FRAMES = 200
INSIDE = np.arange(1, FRAMES) % 50 != 0


def _moved(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A state, the targets that it follows, and its changes, of a robot that wanders."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.standard_normal((FRAMES, 3)).repeat(1, axis=1) * 0.05, axis=0)
    following = np.r_[state[1:], state[-1:]]
    noise = 0.004 * rng.standard_normal(state.shape)
    return state, following + noise, following - state + noise


def said(action, state, representation, unit="rad", **changes) -> list[str]:
    groups = GroupSpec("arm", 3, unit, representation=representation, **changes)
    pair = (action.astype(np.float32), [groups]), (state.astype(np.float32), [GroupSpec("arm", 3, "rad")])
    return list(odd_commands(*pair, INSIDE))


def test_what_it_is_said_to_be():
    state, target, change = _moved()
    assert said(target, state, "absolute") == []
    assert said(change, state, "delta") == []
    assert said(target - state, state, "relative") == []


def test_a_delta_that_is_said_to_be_absolute_and_the_reverse():
    state, target, change = _moved()
    (text,) = said(change, state, "absolute")
    assert text.startswith("action 'arm' is said to be absolute, and follows the change of the state (")
    assert text.endswith("is its representation delta?")
    (text,) = said(target, state, "delta")
    assert "is said to be a delta, and follows the next state (1.00), not its change" in text


@pytest.mark.parametrize("factor", [180 / np.pi, np.pi / 180])
def test_commands_and_state_of_two_units(factor):
    state, target, _ = _moved()
    (text,) = said(factor * target, state, "absolute")
    assert f"follows the state 'arm', and moves {factor:.3g} times as far; are both in one unit?" in text
    assert said(factor * target, state, "absolute", unit="deg") == []  # which is said


def test_a_gripper_is_told_in_another_unit_than_it_is_measured():
    state, target, _ = _moved()
    for name, lines in (("hand", 1), ("gripper", 0)):
        groups = [GroupSpec(name, 1, "unknown")]
        assert len(list(odd_commands((25 * target[:, :1], groups), (state[:, :1], groups), INSIDE))) == lines


def test_actions_that_are_the_state_itself():
    state, _, _ = _moved()
    (text,) = said(state, state, "absolute")
    assert text.startswith(
        "action 'arm' is equal to the state 'arm' of the same frame: a policy would learn to copy"
    )
    still = np.zeros_like(state)
    assert said(still, still, "absolute") == []
    following = np.r_[state[1:], state[-1:]]
    assert said(following, state, "absolute") == []


def test_what_says_nothing():
    state, _, change = _moved()
    assert said(change, state, "absolute", unit="rad/s") == []
    assert said(change, state, "absolute", gripper="open_positive") == []
    unlike = np.random.default_rng(1).standard_normal(state.shape)
    assert said(unlike, state, "absolute") == said(unlike, state, "delta") == []
    few = INSIDE & (np.arange(1, FRAMES) < 20)
    pair = (change, [GroupSpec("arm", 3, "rad")]), (state, [GroupSpec("arm", 3, "rad")])
    assert list(odd_commands(*pair, few)) == []
    other = (
        (change, [GroupSpec("arm", 2, "rad"), GroupSpec("b", 1, "1")]),
        (state, [GroupSpec("c", 3, "rad")]),
    )
    assert list(odd_commands(*other, INSIDE)) == []


def test_a_data_set_without_a_description_is_taken_as_absolute(write_lerobot, tmp_path):
    state, _, change = _moved()
    columns = {"observation.state": state.astype(np.float32), "action": change.astype(np.float32)}
    top = ("observation.images.top",)
    root = write_lerobot(tmp_path / "d", lengths=(120, 80), cameras=top, columns=columns, size=32)
    (note,) = LeRobotSource(LeRobotConfig(str(root)), 2).notes
    assert "action 'action' is said to be absolute, and follows the change of the state" in note
    robot = {
        "embodiment": "arm",
        "action": [{"name": "arm", "representation": "delta"}],
        "state": [{"name": "arm"}],
    }
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(robot))
    assert LeRobotSource(LeRobotConfig(str(root), robot=str(tmp_path / "robot.yaml")), 2).notes == ()
