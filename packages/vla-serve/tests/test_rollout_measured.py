"""A simulator that goes on for as long as an answer really takes."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from vla_core.ensembling import Ensembling
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_core.types import ActionChunk
from vla_serve import ControlLoop, PolicyClient, PolicyServer, RolloutSettings, rollout
from vla_serve.rollout_cli import main
from vla_serve.rollouts.hold import held_steps
from vla_serve.rollouts.results import conditions
from vla_serve.testing import ToyPolicy

HORIZON, HZ = 8, 5.0
TWO = 0.3  # seconds of an answer that takes two steps of 200 ms


class Slow:
    """Answer number n says ``100 n + t``, after ``seconds`` of a clock of its own."""

    framework = "Slow"

    def __init__(self, spec) -> None:
        self.specs, self.answered, self.seconds = {spec.embodiment: spec}, 0, 0.0
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def act(self, observations, seeds, steps=None):
        self.now += self.seconds
        self.answered += 1
        spec = self.specs[observations[0].embodiment].action
        actions = np.repeat(100.0 * self.answered + np.arange(HORIZON)[:, None], spec.dim, 1)
        return [ActionChunk(actions.astype(np.float32), spec)]


@pytest.fixture
def served():
    made = make_spec(horizon=HORIZON)
    groups = tuple(replace(group, rotation="none") for group in made.action.groups)
    spec = replace(made, action=replace(made.action, groups=groups, control_hz=HZ))
    policy = Slow(spec)
    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        policy.answered = 0
        yield client, policy, spec


def measured(client, policy, **options):
    return ControlLoop(client, rtc=False, delay_steps="measured", clock=policy.clock, **options)


def ticks(loop, spec, count):
    """What a simulator is given: an action, or None where the robot holds still."""
    out = [loop.act_if_ready(make_observation(spec, i)) for i in range(count)]
    return [None if action is None else float(action[0]) for action in out]


def test_an_answer_is_there_after_as_many_steps_as_it_took(served):
    client, policy, spec = served
    policy.seconds = TWO
    with measured(client, policy, execute_steps=4) as loop:
        got = ticks(loop, spec, 11)
        assert got == [100, 101, 102, 103, 104, 105, 202, 203, 204, 205, 302]
        assert (loop.delay_steps, loop.stats.late, loop.stats.stalls) == (2, 0, 0)


def test_a_chunk_that_is_used_up_holds_the_robot_until_the_answer_is_there(served):
    client, policy, spec = served
    with measured(client, policy, execute_steps=HORIZON) as loop:
        assert ticks(loop, spec, 7) == [100, 101, 102, 103, 104, 105, 106]
        policy.seconds = 3 * 0.2 + 0.1  # asked at the seventh step, there four steps later
        assert ticks(loop, spec, 5) == [107, None, None, None, 201]
        assert loop.stats.stalls == 1


def test_an_ensemble_hears_what_has_come_by_then(served):
    client, policy, spec = served
    policy.seconds = TWO
    how = Ensembling(temporal_ensemble_coeff=0.0)
    with measured(client, policy, ensembling=how) as loop:
        got = ticks(loop, spec, 5)
        assert got == [100, 101, 102, (103 + 202) / 2, (104 + 203) / 2]  # asked at steps 1, 3


def settings(address, **changes):
    base = {"address": address, "env": "toy", "tasks": ("left",), "episodes": 1, "videos": "none"}
    return RolloutSettings(**{**base, "workers": 1, **changes})


class SlowToy(ToyPolicy):
    """As far as ten steps a second go, it takes two of them."""

    def predict(self, prepared, steps=None):
        time.sleep(0.15)
        return super().predict(prepared, steps)


@pytest.mark.slow
def test_rollouts_measure_what_answers_take(toy, tmp_path):
    with PolicyServer(SlowToy()) as server:
        run = lambda name, **more: rollout(  # noqa: E731
            settings(server.address, execute_steps=2, env_options={"max_steps": 10_000}, **more),
            tmp_path / name,
        )
        waits, goes_on = run("waits", hold_steps="measured"), run("goes_on", delay_steps="measured")
    (held,), (on,) = (results["episodes"] for results in (waits, goes_on))
    took = held["latencies_ms"]
    assert len(took) == (held["steps"] - held["held_steps"] + 1) // 2
    assert held["held_steps"] == sum(math.ceil(ms / 100) for ms in took[1:]) >= 2 * (len(took) - 1) > 0
    assert waits["total"]["held_steps_mean"] == held["held_steps"]
    assert on["success"]
    assert conditions(waits).endswith("the robot held still for as long as it took (measured) at each answer")
    assert conditions(goes_on).endswith(
        "an answer takes over after as many as it took (measured), planned afresh"
    )
    assert goes_on["settings"]["delay_steps"] == "measured"


def test_what_a_robot_holds_for():
    assert held_steps(3, 1000.0, 80.0) == 3
    assert held_steps("measured", 50.0, 80.0) == 4
    assert held_steps("measured", 51.0, 80.0) == 5


def test_other_words_are_refused(tmp_path, capsys):
    with pytest.raises(
        UserError, match="delay_steps: takes a number of control steps or measured, not 'meas'"
    ):
        settings("127.0.0.1:1", delay_steps="meas")
    words = ["--address", "127.0.0.1:1", "--env", "toy", "--task", "left", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*words, "--hold_steps", "long"])
    assert (
        "argument --hold_steps: a number of control steps or measured, not 'long'" in capsys.readouterr().err
    )
