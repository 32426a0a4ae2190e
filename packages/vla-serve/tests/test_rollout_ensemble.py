"""Actions that are means of overlapping chunks: in the control loop, and in rollouts."""

from __future__ import annotations

import json
import math
import threading
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
from vla_serve.rollouts import expert
from vla_serve.rollouts.results import conditions
from vla_serve.testing import ToyPolicy

HORIZON = 8
M = 0.5
ACT = Ensembling(temporal_ensemble_coeff=M)


class Counting:
    """Answer number n says ``100 n + t``; a ``gate`` holds answers back."""

    framework = "Counting"

    def __init__(self, spec) -> None:
        self.specs, self.answered = {spec.embodiment: spec}, 0
        self.gate = threading.Event()
        self.gate.set()

    def longest_delay(self, embodiment):
        return HORIZON - 1

    def act(self, observations, seeds, steps=None, previous=None):
        assert self.gate.wait(20)
        self.answered += 1
        spec = self.specs[observations[0].embodiment].action
        actions = np.repeat(100.0 * self.answered + np.arange(HORIZON)[:, None], spec.dim, 1)
        return [ActionChunk(actions.astype(np.float32), spec)]


def plain_spec():
    made = make_spec(horizon=HORIZON)
    groups = tuple(replace(g, rotation="none", representation="absolute") for g in made.action.groups)
    return replace(made, action=replace(made.action, groups=groups, control_hz=50.0))


@pytest.fixture
def spec():
    return plain_spec()


@pytest.fixture
def policy(spec):
    return Counting(spec)


@pytest.fixture
def client(policy):
    with PolicyServer(policy, max_queue=1) as server:
        policy.answered = 0
        with PolicyClient(server.address, real_time_chunking=True) as opened:
            yield opened
        policy.gate.set()


def run(loop, spec, steps):
    return [float(loop.act(make_observation(spec, i))[0]) for i in range(steps)]


def mean(step, starts, m=M):
    """ACT's mean at ``step`` of answers to the observations of ``starts``, oldest first."""
    said = [100.0 * (n + 1) + step - start for n, start in enumerate(starts)]
    kept = [value for value, start in zip(said, starts, strict=True) if step - start < HORIZON]
    return float(np.average(kept, weights=np.exp(-m * np.arange(len(kept)))))


def test_without_delay_every_step_asks_and_is_the_mean_of_all_that_reach_it(client, policy, spec):
    with ControlLoop(client, rtc=False, delay_steps=0, ensembling=ACT) as loop:
        got = run(loop, spec, 12)
        assert (loop.execute_steps, policy.answered) == (1, 12)
    np.testing.assert_allclose(got, [mean(s, range(s + 1)) for s in range(12)], rtol=1e-6)


@pytest.mark.parametrize(("execute", "every"), [(None, 2), (4, 4)])
def test_with_a_delay_a_step_is_the_mean_of_what_has_come_by_then(client, policy, spec, execute, every):
    options = {"execute_steps": execute, "delay_steps": 2, "ensembling": ACT}
    with ControlLoop(client, rtc=False, **options) as loop:
        got = run(loop, spec, 14)
        assert loop.execute_steps == every
    # Asked at 0, every, 2 every, ...; the first is waited for, each other one takes two steps.
    come = [[t for t in range(0, s + 1, every) if t == 0 or t + 2 <= s] for s in range(14)]
    np.testing.assert_allclose(got, [mean(s, starts) for s, starts in enumerate(come)], rtol=1e-6)


def test_a_robot_takes_an_answer_when_it_is_there_and_asks_again(client, policy, spec):
    with ControlLoop(client, rtc=False, ensembling=Ensembling(temporal_ensemble_coeff=0.0)) as loop:
        assert run(loop, spec, 1) == [100]
        policy.gate.clear()
        assert run(loop, spec, 3) == [101, 102, 103]  # asked at step 1
        policy.gate.set()
        until(lambda: loop._asked.answer.done())
        policy.gate.clear()
        assert run(loop, spec, 1) == [(104 + 203) / 2]  # and asks anew at once
        assert loop._asked.step == 4
        assert (loop.stats.late, loop.stats.stalls) == (0, 0)
        policy.gate.set()


def test_a_new_episode_and_another_instruction_forget_all_chunks(client, spec):
    with ControlLoop(client, rtc=False, delay_steps=0, ensembling=ACT) as loop:
        run(loop, spec, 3)
        loop.drop_chunk()
        assert run(loop, spec, 1) == [400]
        loop.reset()
        assert run(loop, spec, 1) == [500]


def test_newest_groups_and_the_number_of_chunks(client, spec):
    name = spec.action.groups[0].name
    how = replace(ACT, ensemble_newest=(name,))
    with ControlLoop(client, rtc=False, delay_steps=0, ensembling=how) as loop:
        run(loop, spec, 2)
        last = loop.act(make_observation(spec, 2))
        assert last[0] == 300
        assert last[-1] == pytest.approx(mean(2, range(3)))
    how = Ensembling(adaptive_ensemble_alpha=0.0, action_ensemble_horizon=2)
    with ControlLoop(client, rtc=False, delay_steps=0, ensembling=how) as loop:
        loop.reset()
        assert run(loop, spec, 3)[2] == (501 + 600) / 2


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"rtc": True}, "rtc and an ensemble exclude each other"),
        ({}, {"delay_steps": 3, "execute_steps": 2}, "execute_steps: must be at least 3"),
        ({"representation": "relative"}, {}, "cannot be averaged with those of another chunk"),
        ({"rotation": "quaternion_xyzw"}, {}, "are no whole number of rotations"),
    ],
)
def test_what_cannot_be_averaged_is_refused(spec, change, options, words):
    first, *rest = spec.action.groups
    action = replace(spec.action, groups=(replace(first, **change), *rest))
    with PolicyServer(Counting(replace(spec, action=action))) as server:
        with PolicyClient(server.address) as client, pytest.raises(UserError) as caught:
            ControlLoop(client, **{"rtc": False, "delay_steps": 0, "ensembling": ACT, **options})
        assert words in str(caught.value)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def settings(address, **changes):
    base = {
        "address": address,
        "env": "toy",
        "tasks": ("left",),
        "episodes": 2,
        "videos": "none",
        "workers": 1,
    }
    return RolloutSettings(**{**base, **changes})


@pytest.mark.slow
def test_a_rollout_asks_at_every_step_and_says_so(toy, tmp_path):
    with PolicyServer(ToyPolicy()) as server:
        results = rollout(settings(server.address, temporal_ensemble_coeff=0.01), tmp_path)
    steps = sum(e["steps"] for e in results["episodes"])
    assert results["total"]["latency_ms"]["requests"] == steps
    assert results["total"]["requests_per_step"] == 1.0
    assert results["total"]["success_rate"] == 1.0
    told = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert (told["executed_steps"], told["temporal_ensemble_coeff"]) == (1, 0.01)
    assert conditions(results).endswith(
        "the simulator waited for each answer; actions are means of what the chunks say (temporal "
        "ensembling, m = 0.01)"
    )


@pytest.mark.slow
def test_the_program_averages_with_a_delay(toy, tmp_path, capsys):
    with PolicyServer(ToyPolicy(horizon=8)) as server:
        words = ["--address", server.address, "--env", "toy", "--task", "left", "--episodes", "2"]
        words += ["--videos", "none", "--workers", "1", "--out", str(tmp_path)]
        words += ["--delay_steps", "2", "--adaptive_ensemble_alpha", "0.1", "--ensemble_newest", "velocity"]
        assert main(words) == 0
        results = json.loads((tmp_path / "results.json").read_text())
        # One request at a time, each of two steps.
        assert results["settings"]["executed_steps"] == 2
        requests = sum(math.ceil(e["steps"] / 2) for e in results["episodes"])
        assert results["total"]["latency_ms"]["requests"] in range(requests - 2, requests + 1)
        assert "adaptive ensembling, alpha = 0.1, but for velocity" in capsys.readouterr().out
        # Another coefficient is another experiment.
        assert main([*words, "--action_ensemble_horizon", "3"]) == 2
        assert "action_ensemble_horizon None, now 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rtc": True, "delay_steps": 1, "temporal_ensemble_coeff": 0.01}, "rtc and an ensemble exclude"),
        ({"temporal_ensemble_coeff": 0.01, "adaptive_ensemble_alpha": 0.1}, "exclude each other; give one"),
        ({"temporal_ensemble_coeff": -1.0}, "temporal_ensemble_coeff: "),
        ({"action_ensemble_horizon": 3}, "action_ensemble_horizon: belongs to an ensemble"),
        ({"ensemble_newest": ("velocity",)}, "ensemble_newest: belongs to an ensemble"),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(UserError) as caught:
        settings("127.0.0.1:1", **changes)
    assert words in str(caught.value)


def test_an_expert_averages_nothing():
    class Expert:
        expert_action = None

    asked = RolloutSettings("", "some", ("task",), policy="expert", temporal_ensemble_coeff=0.01)
    with pytest.raises(UserError, match="temporal_ensemble_coeff: an expert sees"):
        expert.check(Expert, "some", asked)


@pytest.mark.slow
def test_an_unknown_group_ends_the_rollout(toy, tmp_path):
    with PolicyServer(ToyPolicy()) as server, pytest.raises(UserError, match="no action group 'grip'"):
        rollout(settings(server.address, temporal_ensemble_coeff=0.0, ensemble_newest=("grip",)), tmp_path)
