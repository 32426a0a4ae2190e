"""The control loop: each action comes from the right place of the right chunk, whatever an answer takes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_core.types import ActionChunk
from vla_serve import ControlLoop, PolicyBusy, PolicyClient, PolicyClientError, PolicyServer, PolicyTimeout

HORIZON = 8


class Slow:
    """Each answer counts up from 100 times its number; a ``gate`` holds it back.

    It takes ``seconds`` of a clock of its own, however slow the machine is.
    """

    framework = "Slow"

    def __init__(self, spec, longest=HORIZON - 1) -> None:
        self.specs, self._longest = {spec.embodiment: spec}, longest
        self.seconds, self.answered = 0.0, 0
        self.gate = threading.Event()
        self.gate.set()
        self.seeds: list[int] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def longest_delay(self, embodiment):
        return self._longest

    def act(self, observations, seeds, steps=None, previous=None):
        assert self.gate.wait(20)
        self.now += self.seconds
        spec = self.specs[observations[0].embodiment].action
        self.answered += 1
        self.seeds += seeds
        actions = np.repeat(100.0 * self.answered + np.arange(spec.horizon)[:, None], spec.dim, 1)
        if previous is not None:
            (left,) = previous
            actions[: left.n_frozen] = left.actions[: left.n_frozen]
        return [ActionChunk(actions.astype(np.float32), spec)]


@pytest.fixture
def spec():
    return replace(
        make_spec(horizon=HORIZON), action=replace(make_spec(horizon=HORIZON).action, control_hz=50.0)
    )


@pytest.fixture
def policy(spec):
    return Slow(spec)


@pytest.fixture
def client(policy):
    with PolicyServer(policy, max_queue=1) as server:
        policy.answered = 0
        policy.seeds.clear()
        with PolicyClient(server.address, real_time_chunking=True) as opened:
            yield opened
        policy.gate.set()


def run(loop, spec, steps, seed=None):
    return [int(loop.act(make_observation(spec, i), seed)[0]) for i in range(steps)]


@pytest.mark.parametrize("rtc", [True, False])
def test_an_answer_takes_over_after_the_delay_at_the_step_that_is_due(client, spec, rtc):
    with ControlLoop(client, rtc=rtc, execute_steps=4, delay_steps=2) as loop:
        # Asked at steps 0, 4, 8, ...; over at 6, 10, ...; the action of a step counts from the observation.
        assert run(loop, spec, 16) == [
            *(100, 101, 102, 103, 104, 105),
            *(202, 203, 204, 205),
            *(302, 303, 304, 305),
            *(402, 403),
        ]
        assert len(loop.stats.round_trips_ms) == 4
        assert (loop.stats.late, loop.stats.stalls) == (0, 0)


def test_the_chunks_continue_each_other(client, spec):
    """Frozen steps are of the old chunk; what a jerk would be, the policy of this test has behind them."""
    chunks = []
    predict = client.predict
    client.predict = lambda *a, **k: chunks.append((k["step"], predict(*a, **k))) or chunks[-1][1]
    with ControlLoop(client, execute_steps=3, delay_steps=3) as loop:
        run(loop, spec, 10)
    assert [(step, chunk.frozen_steps) for step, chunk in chunks] == [(0, 0), (3, 3), (6, 3), (9, 3)]
    for (_, old), (_, new) in pairwise(chunks):
        np.testing.assert_array_equal(new.actions[:3], old.actions[3:6])


def test_view_keys_go_with_every_request(client, spec):
    told = []
    predict = client.predict
    client.predict = lambda *a, view_keys, **k: told.append(view_keys) or predict(*a, **k)
    with ControlLoop(client, delay_steps=0, view_keys={"camera_0": "cell"}) as loop:
        run(loop, spec, 5)
    assert told == [{"camera_0": "cell"}] * 2


def test_without_delay_the_loop_waits_for_each_answer(client, policy, spec):
    with ControlLoop(client, rtc=False, delay_steps=0) as loop:
        assert run(loop, spec, 9, seed=5) == [100, 101, 102, 103, 200, 201, 202, 203, 300]
    assert policy.seeds == [5, 5, 5]


def test_a_robot_measures_the_delay(client, policy, spec):
    """Each answer but the first is there in the middle of the third step after its observation."""
    with ControlLoop(client, execute_steps=3, clock=policy.clock) as loop:
        policy.seconds = 0.05  # two and a half steps of 20 ms
        actions = run(loop, spec, 1)
        assert loop.delay_steps == 3
        policy.gate.clear()
        for _ in range(24):
            actions += run(loop, spec, 1)
            asked = loop._asked
            if asked is not None and loop._step - asked.step >= 3:
                policy.gate.set()
                until(asked.there)
                policy.gate.clear()
        policy.gate.set()
        assert loop.delay_steps == 3
        assert (loop.stats.late, loop.stats.stalls) == (0, 0)
        assert len(loop.stats.round_trips_ms) == 8
    # An answer begins with what was executed, so its own numbers start behind that; none is left out.
    for before, action in pairwise(actions):
        assert action == before + 1 or (action // 100 == before // 100 + 1 and action % 100 == 3)


def test_a_late_answer_takes_over_late_and_the_next_is_asked_for_longer(client, policy, spec):
    with ControlLoop(client, execute_steps=3, clock=policy.clock) as loop:
        assert run(loop, spec, 3) == [100, 101, 102]
        policy.gate.clear()
        assert run(loop, spec, 3) == [103, 104, 105]  # asked at step 3
        policy.gate.set()
        until(lambda: loop._asked.answer.done())
        assert run(loop, spec, 1) == [203]
        assert (loop.stats.late, loop.stats.stalls, loop.delay_steps) == (1, 0, 3)


def test_a_chunk_that_is_used_up_makes_the_robot_wait(client, policy, spec):
    with ControlLoop(client, execute_steps=4, clock=policy.clock) as loop:
        run(loop, spec, 4)
        policy.gate.clear()
        policy.seconds = 0.1
        assert run(loop, spec, 4) == [104, 105, 106, 107]
        threading.Timer(0.1, policy.gate.set).start()
        assert run(loop, spec, 1) == [204]
        assert (loop.stats.late, loop.stats.stalls) == (1, 1)
        assert loop.delay_steps == 5  # 0.1 s at 50 Hz
        assert loop.execute_steps == HORIZON - loop.delay_steps


def test_a_reset_starts_anew_and_drops_what_is_under_way(client, policy, spec):
    with ControlLoop(client, execute_steps=4, delay_steps=2) as loop:
        run(loop, spec, 5)  # the second chunk is asked for
        loop.reset("again")
        assert run(loop, spec, 2) == [300, 301]
        assert len(loop.stats.round_trips_ms) == 1


def test_after_a_failed_request_the_chunk_goes_on(client, policy, spec):
    with ControlLoop(client, rtc=True, execute_steps=2, delay_steps=2) as loop:
        run(loop, spec, 2)
        predict, client.predict = client.predict, refuse
        run(loop, spec, 2)
        with pytest.raises(PolicyTimeout):
            run(loop, spec, 1)
        client.predict = predict
        assert run(loop, spec, 4) == [104, 105, 202, 203]


def refuse(*args, **kwargs):
    raise PolicyTimeout("too slow")


def test_a_busy_server_is_asked_again(client, spec):
    predict, refusals = client.predict, [PolicyBusy("busy", 0.01), PolicyBusy("busy", 0.01)]

    def busy(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return predict(*args, **kwargs)

    client.predict = busy
    with ControlLoop(client, delay_steps=0, busy_s=5.0) as loop:
        assert run(loop, spec, 1) == [100]
    refusals.append(PolicyBusy("busy", 0.01))
    with ControlLoop(client, delay_steps=0) as loop, pytest.raises(PolicyBusy):
        run(loop, spec, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay_steps": -1}, "delay_steps: -1 is outside 0 to 4"),
        ({"delay_steps": 5}, "delay_steps: 5 is outside 0 to 4: half of a chunk of 8 steps"),
        ({"delay_steps": 3, "execute_steps": 2}, "execute_steps: must be at least 3"),
        ({"execute_steps": 0}, "execute_steps: must be at least 1, got 0"),
        ({"execute_steps": 99}, rf"execute_steps: 99, but a chunk has {HORIZON} steps"),
        (
            {"execute_steps": HORIZON - 1, "delay_steps": 2},
            rf"has {HORIZON} steps; a delay of 2 leaves {HORIZON - 2}",
        ),
    ],
)
def test_bad_settings(client, options, words):
    with pytest.raises(UserError) as caught:
        ControlLoop(client, **options)
    assert words in str(caught.value)


def test_a_delay_beyond_the_policy(spec):
    with PolicyServer(Slow(spec, 2)) as server, PolicyClient(server.address) as client:
        with pytest.raises(UserError, match="delay_steps: 3; this policy bridges at most 2"):
            ControlLoop(client, delay_steps=3)
        with ControlLoop(client, rtc=False, delay_steps=3) as loop:
            run(loop, spec, 1)


def test_a_policy_that_cannot(spec):
    class Plain:
        framework, specs = "Plain", {"default": spec}

        def act(self, observations, seeds, steps=None):
            return [ActionChunk(np.zeros((HORIZON, 7), np.float32), spec.action)]

    with PolicyServer(Plain()) as server, PolicyClient(server.address) as client:
        with pytest.raises(UserError, match="rtc: this policy cannot continue a chunk"):
            ControlLoop(client)
        with ControlLoop(client, rtc=False, delay_steps=2) as loop:
            assert run(loop, spec, 9) == [0] * 9


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_dropped_chunk_is_followed_by_an_answer_to_the_next_observation(client, spec, policy):
    """Its instruction no longer holds; what was counted of the episode stays."""
    with ControlLoop(client, rtc=False, execute_steps=4, delay_steps=0) as loop:
        assert run(loop, spec, 2) == [100, 101]
        loop.drop_chunk()
        assert run(loop, spec, 5) == [200, 201, 202, 203, 300]
        assert len(loop.stats.round_trips_ms) == 3
    with ControlLoop(client, rtc=True, execute_steps=4, delay_steps=2) as loop:
        loop.reset()
        run(loop, spec, 5)  # a request is under way
        loop.drop_chunk()
        fresh = policy.answered + 1
        assert run(loop, spec, 1) == [100 * fresh]  # nothing is frozen of the chunk before


def test_arrays_that_are_written_to_again_are_those_of_the_step_that_asked(client, policy, spec):
    """As cameras and drivers do; the request is on its way meanwhile, and its state is an origin later."""
    seen, asked, act = make_observation(spec), [], policy.act
    policy.act = lambda observations, *a, **k: asked.extend(observations) or act(observations, *a, **k)
    with ControlLoop(client, execute_steps=4, delay_steps=2) as loop:
        for step in range(8):
            for array in (seen.state, *seen.images.values()):
                array[:] = step
            loop.act(seen)
        assert loop.origin.state.tolist() == [4.0] * spec.observation.state_dim
        assert not loop.origin.images  # they stand where the next ones are written
    for one, step in zip(asked, (0, 4), strict=True):
        assert (one.state == step).all()
        assert all((image == step).all() for image in one.images.values())


def test_pictures_are_copied_to_where_the_last_ones_were(client, spec):
    """Fresh memory for them takes longer than the control step of a quick robot has."""
    sent, predict = [], client.predict
    client.predict = lambda one, *a, **k: sent.append(one) or predict(one, *a, **k)
    with ControlLoop(client, execute_steps=4, delay_steps=0) as loop:
        run(loop, spec, 9)
    given = make_observation(spec)
    for name, image in given.images.items():
        assert len({one.images[name].__array_interface__["data"][0] for one in sent}) == 1
        assert not np.shares_memory(sent[0].images[name], image)


class Tensor:
    """As torch's on a CPU: numpy reads it where it is."""

    def __init__(self, array) -> None:
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_what_only_becomes_an_array_is_copied_too(client, spec):
    seen, sent, predict = make_observation(spec), [], client.predict
    client.predict = lambda one, *a, **k: sent.append(one) or predict(one, *a, **k)
    images = {name: Tensor(image) for name, image in seen.images.items()}
    with ControlLoop(client, delay_steps=0) as loop:
        loop.act(replace(seen, images=images, state=Tensor(seen.state)))
    for now, then in ((seen.state, sent[0].state), *((seen.images[n], sent[0].images[n]) for n in images)):
        np.testing.assert_array_equal(then, now)
        assert not np.shares_memory(then, now)


@pytest.mark.parametrize("given", ["a picture", None, {"images": {}}])
def test_what_is_no_observation_is_said_as_the_client_says_it(client, spec, given):
    with ControlLoop(client) as loop, pytest.raises(PolicyClientError, match=r"expected a vla_core\.Obs"):
        loop.act(given)
    with ControlLoop(client) as loop, pytest.raises(PolicyClientError, match="expected camera name"):
        loop.act(replace(make_observation(spec), images=[]))
