"""Both clients: the same session, errors that name what was passed wrong, and sessions that come back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import (
    AsyncPolicyClient,
    ControlLoop,
    HandshakeError,
    PolicyClient,
    PolicyClientError,
    PolicyServer,
    PolicySuperseded,
    PolicyTimeout,
    PolicyUnavailable,
    SessionLost,
)
from vla_serve.engine.estimates import Estimates
from vla_serve.testing import GatedPolicy, TimedPolicy

SPEC = make_spec()


@pytest.fixture(scope="module")
def timed():
    with PolicyServer(TimedPolicy(SPEC), max_sessions=8) as server:
        yield server


@pytest.fixture
def opened(timed):
    with PolicyClient(timed.address) as client:
        yield client


class Elsewhere:
    """As a tensor on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


WRONG = {
    "instruction is a number": (lambda c, o: c.reset(5), "instruction: 5 is a int, expected a text"),
    "instruction is half a character": (lambda c, o: c.reset("go \ud800"), "instruction: holds half"),
    "observation's instruction": (
        lambda c, o: c.predict(replace(o, instruction=7)),
        "observation.instruction: 7 is a int",
    ),
    "observation's surrogate": (
        lambda c, o: c.predict(replace(o, instruction="\udc00")),
        "observation.instruction: holds half a character (a surrogate) at 0",
    ),
    "no observation": (lambda c, o: c.predict({"image": 1}), "observation: a dict, expected"),
    "images in a list": (
        lambda c, o: c.predict(replace(o, images=list(o.images.values()))),
        "observation.images: a list, expected camera name -> array",
    ),
    "a camera that is a number": (
        lambda c, o: c.predict(replace(o, images={0: o.images["camera_0"]})),
        "observation.images: 0 is a int",
    ),
    "a ragged state": (
        lambda c, o: c.predict(replace(o, state=[[1.0, 2.0], [3.0]])),
        "observation.state: a ragged list",
    ),
    "an image that numpy cannot read": (
        lambda c, o: c.predict(replace(o, images={**o.images, "camera_0": Elsewhere()})),
        "observation.images[camera_0]: a Elsewhere that is no array (can't convert cuda:0",
    ),
    "seed NaN": (lambda c, o: c.predict(o, seed=float("nan")), "seed: nan is no whole number"),
    "seed in words": (lambda c, o: c.predict(o, seed="7"), "seed: '7' is no whole number"),
    "seed of two": (lambda c, o: c.predict(o, seed=[1, 2]), "seed: [1, 2] is no whole number"),
    "half a step": (lambda c, o: c.predict(o, step=1.5), "step: 1.5 is no whole number"),
    "time without end": (lambda c, o: c.predict(o, timeout_s=float("inf")), "timeout_s: must be positive"),
    "time beyond all clocks": (lambda c, o: c.predict(o, timeout_s=1e300), "timeout_s: 1e+300 s is longer"),
    "time in words": (lambda c, o: c.predict(o, timeout_s="1"), "timeout_s: must be positive and finite"),
    "a chunk as previous": (lambda c, o: c.predict(o, previous=np.zeros(3)), "previous: a ndarray"),
    "view keys in a list": (lambda c, o: c.predict(o, view_keys=["a"]), "view_keys: a list"),
    "a view key that is none": (
        lambda c, o: c.predict(o, view_keys={"camera_0": 3}),
        "view_keys[camera_0]: 3 is a int",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_passed_wrong_is_named(opened, case):
    use, words = WRONG[case]
    with pytest.raises(PolicyClientError) as caught:
        use(opened, make_observation(SPEC))
    assert words in str(caught.value)
    assert list(caught.value.fields) == [str(caught.value).partition(":")[0]]
    opened.predict(make_observation(SPEC))  # and the session goes on


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": 5}, "address: 5 is no text"),
        ({"address": "http://127.0.0.1:80"}, "is a URL"),
        ({"address": "host:"}, "has no port"),
        ({"address": "host:99999"}, "a port is below 65536"),
        ({"policy": 3}, "policy: 3 is a int"),
        ({"embodiment": "\ud800"}, "embodiment: holds half"),
        ({"token": "two\nlines"}, "token: must be one line"),
        ({"observation_spec": SPEC}, "observation_spec: a RobotSpec, expected a ObservationSpec"),
        ({"action_spec": 5}, "action_spec: a int, expected a ActionSpec"),
        ({"camera_inputs": ["depth"]}, "camera_inputs: a list, expected a Mapping"),
        ({"tls": True}, "tls: a bool, expected a TLS"),
        ({"timeout_s": None}, "timeout_s: must be positive and finite, got None"),
    ],
)
@pytest.mark.parametrize("kind", [PolicyClient, AsyncPolicyClient])
def test_options_that_are_wrong_are_named(kind, options, words):
    with pytest.raises(UserError) as caught:
        kind(**{"address": "127.0.0.1:1", **options})
    assert words in str(caught.value)


@pytest.mark.parametrize("seed", [7, 7.0, np.int64(7), np.uint8(7), np.array(7)])
def test_whole_numbers_of_any_type_are_taken(opened, seed):
    opened.predict(make_observation(SPEC), seed=seed)
    assert opened.seed == 7


def test_a_client_that_was_closed_opens_again(timed):
    client = PolicyClient(timed.address)
    for _ in range(2):
        client.open()
        client.open()  # an open session stays as it is
        first = client.predict(make_observation(SPEC), seed=1).actions
        client.close()
        client.close()
    assert first.shape == (SPEC.action.horizon, SPEC.action.dim)


def test_a_loop_goes_on_in_a_new_session_after_a_reset(timed):
    with (
        PolicyClient(timed.address) as client,
        ControlLoop(client, rtc=False, delay_steps=0) as loop,
    ):
        loop.reset("one")
        loop.act(make_observation(SPEC))
        timed.sessions._sessions.clear()
        with pytest.raises(SessionLost):
            acted(loop, SPEC.action.horizon)
        loop.reset("two")
        loop.act(replace(make_observation(SPEC), instruction=""))


def test_a_loop_is_fitted_to_what_is_served_after_a_restart(timed):
    """The server came back with a policy of shorter chunks: what no longer fits is said at the reset."""
    first = PolicyServer(TimedPolicy(SPEC))
    first.start()
    port = first.port
    with PolicyClient(first.address) as client, ControlLoop(client, rtc=False, delay_steps=2) as loop:
        acted(loop, 1)
        first.stop()
        with PolicyServer(TimedPolicy(make_spec(horizon=2)), port=port):
            client.wait_ready(20)
            with pytest.raises(UserError, match="delay_steps: 2 is outside 0 to 1"):
                loop.reset()


def acted(loop, steps):
    return [loop.act(make_observation(SPEC, step)) for step in range(steps)]


def test_a_server_that_answers_nonsense_moves_no_robot(opened, monkeypatch):
    from vla_serve.messages.codec import encode_tensor

    reply = opened._connection.predict(
        opened._predict_request(make_observation(SPEC), 1, None, None, None, None), timeout=10
    )
    for actions in (np.zeros((1, 7), np.float32), np.full((SPEC.action.horizon, 7), np.nan, np.float32)):
        reply.actions.CopyFrom(encode_tensor(actions))
        with pytest.raises(RuntimeError, match=r"not the finite \[4, 7\] of the contract"):
            opened._answer(reply, None, 1.0)


def test_the_asynchronous_twin_does_the_same(timed):
    observation = make_observation(SPEC)
    with PolicyClient(timed.address) as client:
        expected = [client.predict(observation, seed=seed).actions for seed in range(6)]

    async def ask(encoding):
        async with AsyncPolicyClient(timed.address, encoding=encoding) as twin:
            assert twin.contract == client.contract
            assert (await twin.server_info()).max_sessions == 8
            await twin.wait_ready(5)
            await twin.reset("go")
            chunks = await asyncio.gather(*(twin.predict(observation, seed=seed) for seed in range(6)))
            assert twin.timings.round_trip_ms > 0
            return [chunk.actions for chunk in chunks]

    for encoding in ("raw", "png"):  # two event loops, one after the other, beside the server's
        np.testing.assert_array_equal(asyncio.run(ask(encoding)), expected)


def test_the_asynchronous_twin_fails_the_same():
    policy = TimedPolicy(SPEC)

    async def ask(address):
        client = AsyncPolicyClient(address)
        with pytest.raises(PolicyClientError, match="with AsyncPolicyClient"):
            await client.predict(make_observation(SPEC))
        async with client:
            with pytest.raises(PolicyClientError, match="seed: nan"):
                await client.predict(make_observation(SPEC), seed=float("nan"))
            policy.run_s = 0.4
            server.engine._desk.estimates = Estimates()  # nothing is refused for what it is expected to take
            with pytest.raises(PolicyTimeout):
                await client.predict(make_observation(SPEC), timeout_s=0.05)
            task = asyncio.create_task(client.predict(make_observation(SPEC)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            policy.run_s = 0.0
            server.sessions._sessions.clear()
            with pytest.raises(SessionLost):
                await client.predict(make_observation(SPEC))
            await client.open()
            await client.predict(make_observation(SPEC))
        other = replace(SPEC.action, control_hz=99.0)
        with pytest.raises(HandshakeError, match="control_hz"):
            async with AsyncPolicyClient(address, action_spec=other):
                pass

    with PolicyServer(policy) as server:
        address = server.address
        asyncio.run(ask(address))

    async def nobody():
        with pytest.raises(PolicyUnavailable, match="is vla-serve running there"):
            await AsyncPolicyClient(address).open()
        with pytest.raises(PolicyTimeout, match=r"not ready after 0\.1 s"):
            await AsyncPolicyClient(address).wait_ready(0.1)

    asyncio.run(nobody())


def test_a_newer_observation_takes_the_place_of_those_that_wait():
    policy = GatedPolicy(SPEC)

    async def ask(server):
        async with AsyncPolicyClient(server.address) as client, AsyncPolicyClient(server.address) as other:
            policy.gate.clear()
            first = asyncio.create_task(client.predict(make_observation(SPEC), seed=1))
            while not server.engine._desk.running_s:
                await asyncio.sleep(0.005)
            tasks = [asyncio.create_task(client.predict(make_observation(SPEC), seed=n)) for n in (2, 3)]
            tasks.append(asyncio.create_task(other.predict(make_observation(SPEC), seed=4)))
            while server.engine.waiting < 3:
                await asyncio.sleep(0.005)
            newest = asyncio.create_task(client.predict(make_observation(SPEC), seed=5, supersedes=True))
            for task in tasks[:2]:
                with pytest.raises(PolicySuperseded, match="a newer observation of the session"):
                    await task
            policy.gate.set()
            return [
                round(float(chunk.actions[0, 0])) for chunk in [await first, await tasks[2], await newest]
            ]

    with PolicyServer(policy, max_batch=1) as server:
        policy.runs.clear()
        seeds = asyncio.run(ask(server))
    assert np.diff(seeds).tolist() == [3, 1]  # seeds 1, 4 and 5
    assert len(policy.runs) == 3


SERVER = """
import sys
from vla_core.testing import make_spec
from vla_serve import PolicyServer
from vla_serve.testing import TimedPolicy
with PolicyServer(TimedPolicy(make_spec()), port=int(sys.argv[1])) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


def start(port=0):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, json.loads(process.stdout.readline())


@pytest.mark.slow
def test_a_server_that_was_away_for_long_is_found_within_seconds():
    """Without a cap, gRPC's pauses grow to two minutes; after 48 s it noticed 21 s late."""
    process, port = start()
    try:
        with PolicyClient(f"127.0.0.1:{port}") as client:
            process.kill()
            process.wait()
            away = time.monotonic() + 15
            while time.monotonic() < away:
                with pytest.raises((PolicyUnavailable, PolicyTimeout)):
                    client.predict(make_observation(SPEC), timeout_s=1.0)
                time.sleep(0.2)
            process, _ = start(port)
            back = time.monotonic()
            client.wait_ready(20)
            assert time.monotonic() - back < 5
            with pytest.raises(SessionLost):
                client.predict(make_observation(SPEC))
            client.open()
            client.predict(make_observation(SPEC))
    finally:
        process.kill()
        process.wait()


def test_a_thread_of_each_robot_has_its_own_client(timed):
    """The hold and the connection of one are not those of another."""
    found: list[int] = []

    def drive(number):
        with PolicyClient(timed.address) as client:
            for _ in range(5):
                chunk = client.predict(make_observation(SPEC, number), seed=number)
            found.append(round(float(chunk.actions[0, 0]) - number))

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
