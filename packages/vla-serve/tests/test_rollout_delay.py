"""Rollouts with a simulated delay, and with answers that continue the chunk being executed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, GroupSpec
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_serve.rollout_cli import main
from vla_serve.rollouts.hold import holding
from vla_serve.rollouts.results import conditions
from vla_serve.testing import ToyPolicy


def settings(address, **changes):
    return RolloutSettings(
        **{"address": address, "env": "toy", "tasks": ("left",), "episodes": 3, "videos": "none", **changes}
    )


class Told(ToyPolicy):
    """Keeps what it was told to continue."""

    def __init__(self) -> None:
        super().__init__()
        self.previous = []

    def prepare(self, rows):
        for row in rows:
            left = row.previous
            self.previous.append(None if left is None else (len(left.actions), left.n_frozen))
        return super().prepare(rows)


@pytest.mark.slow
def test_a_delay_is_simulated_in_steps(toy, tmp_path):
    policy = Told()
    with PolicyServer(policy) as server:

        def run(**more):
            policy.previous.clear()
            return rollout(
                settings(server.address, execute_steps=2, workers=1, **more), tmp_path, overwrite=True
            )

        waited, none = run(), run(delay_steps=0)
        afresh = run(delay_steps=2)
        assert set(policy.previous) == {None}
        rtc = run(delay_steps=2, rtc=True)
        # The first of an episode continues none; the others come two steps after the one before.
        assert [told is None for told in policy.previous].count(True) == 3
        assert set(policy.previous) == {None, (2, 2)}
    assert [(e["seed"], e["success"], e["steps"]) for e in waited["episodes"]] == [
        (e["seed"], e["success"], e["steps"]) for e in none["episodes"]
    ]
    requests = [results["total"]["latency_ms"]["requests"] for results in (none, afresh, rtc)]
    steps = [e["steps"] for e in none["episodes"]]
    # Each chunk serves two steps, and the first also those until the second takes over.
    assert requests[0] == sum(math.ceil(s / 2) for s in steps)
    assert requests[1] == requests[2] == sum(1 + max(0, math.ceil((s - 4) / 2)) for s in steps)
    recorded = [results["settings"] for results in (waited, afresh, rtc)]
    assert [(s["delay_steps"], s["rtc"]) for s in recorded] == [(None, False), (2, False), (2, True)]
    said = [conditions(results) for results in (waited, afresh, rtc)]
    assert said[0] == "2 steps from request to request; the simulator waited for each answer"
    assert said[1].endswith("an answer takes over after 2, planned afresh")
    assert said[2].endswith("after 2, continuing the chunk before (real-time chunking)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delay_steps": 3}, "delay_steps: 3 is outside 0 to 2"),
        ({"delay_steps": 2, "execute_steps": 1}, "execute_steps: must be at least 2"),
    ],
)
def test_a_delay_that_the_chunk_does_not_bridge_ends_the_rollout(toy, tmp_path, changes, words):
    with PolicyServer(ToyPolicy()) as server, pytest.raises(UserError) as caught:
        rollout(settings(server.address, **changes), tmp_path)
    assert words in str(caught.value)


def test_the_program_refuses_a_head_that_cannot(toy, tmp_path, capsys):
    class Plain(ToyPolicy):
        longest_delay = None

        def act(self, observations, seeds, steps=None):
            return super().act(observations, seeds, steps)

    with PolicyServer(Plain()) as server:
        arguments = ["--address", server.address, "--env", "toy", "--task", "left", "--videos", "none"]
        options = ["--out", str(tmp_path), "--rtc", "--delay_steps", "1"]
        assert main([*arguments, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "a Plain cannot keep the start of an earlier chunk" in line
        assert main([*arguments, *options[:2], "--delay_steps", "1", "--episodes", "1"]) == 0


def test_a_robot_that_waits_holds_still_while_time_goes_on(toy, tmp_path):
    with PolicyServer(ToyPolicy()) as server:
        run = lambda name, **more: rollout(  # noqa: E731
            settings(server.address, execute_steps=2, workers=1, **more), tmp_path / name
        )
        free, waits = run("free"), run("waits", hold_steps=3)
        short = run("short", hold_steps=3, env_options={"max_steps": 6}, episodes=1)
    for a, b in zip(free["episodes"], waits["episodes"], strict=True):
        # The same way, with three steps of nothing before each answer but the first.
        assert b["steps"] == a["steps"] + 3 * (math.ceil(a["steps"] / 2) - 1)
        assert b["success"]
    assert (short["episodes"][0]["steps"], short["episodes"][0]["success"]) == (6, False)
    assert conditions(waits).endswith("the robot held still for 3 at each answer")


def test_holding_still_keeps_targets_and_grip():
    spec = ActionSpec(
        (
            GroupSpec("hand", 3, "m", representation="delta"),
            GroupSpec("turn", 4, "1", representation="delta", rotation="quaternion_xyzw"),
            GroupSpec("lift", 1, "m"),
            GroupSpec("grip", 1, "1", representation="delta", gripper="close_positive"),
        ),
        1,
        10.0,
    )
    last = np.arange(1, 10, dtype=np.float32)
    assert holding(spec, last).tolist() == [0, 0, 0, 0, 0, 0, 1, 8, 9]
    assert last[0] == 1
