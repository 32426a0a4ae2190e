"""What cannot be known to be wrong, and most likely is: a state of another unit, a loop at another rate."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_observation, make_spec
from vla_serve import ControlLoop, PolicyClient, PolicyClientError, PolicyServer
from vla_serve.clients import control_loop as loops
from vla_serve.clients.called_rate import CALLS, CalledRate
from vla_serve.engine.reach import Reach
from vla_serve.messages.codec import FieldError, decode_image
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import types_pb2 as pb


@pytest.fixture
def learned():
    """A spec whose policy has seen states from -1 to 1, but for a dim that never moved."""
    spec = make_spec()
    rows = np.linspace(-1, 1, 21)[:, None] * np.ones(spec.observation.state_dim)
    rows[:, 2] = 0.5
    return replace(spec, statistics=NormStats({"state": VectorStats.from_rows(rows)}))


def _seen(spec, state):
    return replace(make_observation(spec), state=state)


def test_a_group_that_is_far_off_is_said_once(learned):
    reach, state = Reach(learned), np.zeros(learned.observation.state_dim, np.float32)
    first, second = list(learned.observation.state_slices())[:2]
    state[2] = 1e3  # constant in the data, so that no policy sees it
    assert list(reach.lines(_seen(learned, state))) == []
    state[1] = 10.9
    assert list(reach.lines(_seen(learned, state))) == []
    state[1] = -57.3
    (said,) = reach.lines(_seen(learned, state))
    assert said.startswith(
        f"state group '{first}' is -57.3 (dim 1), and the policy learned from -1 to 1: another"
    )
    assert list(reach.lines(_seen(learned, state))) == []
    state[learned.observation.state_slices()[second].start] = 90
    (said,) = reach.lines(_seen(learned, state))
    assert f"'{second}' is 90 (dim 0)" in said


def test_a_small_part_of_the_numbers_themselves_is_not_far(learned):
    """A gripper that was open in all demonstrations moves a centimetre: forty times its range in the data."""
    low_high = np.array([[0.0997], [0.1]]) * np.ones(learned.observation.state_dim)
    spec = replace(learned, statistics=NormStats({"state": VectorStats.from_rows(low_high)}))
    for value, far in ((0.09, False), (0.06, False), (90.0, True), (-0.1, True)):
        state = np.full(spec.observation.state_dim, value, np.float32)
        assert bool(list(Reach(spec).lines(_seen(spec, state)))) == far


def test_statistics_that_are_no_numbers_say_nothing(learned):
    rows = np.full((2, learned.observation.state_dim), np.nan)
    spec = replace(learned, statistics=NormStats({"state": VectorStats.from_rows(rows)}))
    assert list(Reach(spec).lines(_seen(spec, np.zeros(spec.observation.state_dim, np.float32)))) == []


def test_a_state_is_not_looked_at_without_statistics(learned):
    state = np.full(learned.observation.state_dim, 1e6, np.float32)
    assert list(Reach(replace(learned, statistics=NormStats())).lines(_seen(learned, state))) == []
    assert list(Reach(learned).lines(_seen(learned, None))) == []


def test_the_server_says_it_once_a_session(learned, caplog):
    seen = make_observation(learned)
    far = replace(seen, state=seen.state * np.float32(1e3))
    with PolicyServer(TimedPolicy(learned)) as server, caplog.at_level(logging.WARNING, "vla_serve.server"):
        for _ in range(2):
            with PolicyClient(server.address) as client:
                told = [client.predict(one).notes for one in (seen, far, far)]
                assert [len(notes) for notes in told] == [0, len(learned.observation.state), 0]
    at_client = [r.getMessage() for r in caplog.records if r.name == "vla_serve.clients.client"]
    assert at_client[-1].endswith(f": {told[1][-1]}")
    said = [r.getMessage() for r in caplog.records if r.name == "vla_serve.server"]
    groups = len(learned.observation.state)
    assert len(said) == 2 * groups
    assert len({line.partition(":")[0] for line in said}) == 2  # session and request


def _calls(rate: CalledRate, hz: float, n: int = 2 * CALLS, late: int = 0) -> None:
    for i in range(n):
        rate.call(1 + i / hz + (0.5 if i < late else 0))


@pytest.mark.parametrize(("hz", "said"), [(20, 0), (23, 0), (16.5, 0), (10, 1), (50, 1), (1e5, 1)])
def test_another_rate_is_said_once(hz, said, caplog):
    rate = CalledRate(20.0)
    for _ in range(3):
        rate.begin()
        _calls(rate, hz)
    assert len(caplog.messages) == said
    if hz == 10:
        assert caplog.messages[0].startswith(
            "control steps come at 10 Hz, and the policy's are of 20 Hz: the robot moves 0.5 times as fast"
        )


def test_a_few_late_calls_and_pauses_are_no_other_rate(caplog):
    rate = CalledRate(20.0)
    _calls(rate, 20, late=CALLS // 3)
    for _ in range(5):  # short episodes with long pauses between
        rate.begin()
        rate.call(1e6)
        rate.call(1e6 + 0.05)
    assert caplog.messages == []


@pytest.mark.parametrize(("delay_steps", "said"), [(None, 1), (2, 0), ("measured", 0)])
def test_a_loop_looks_at_a_robots_rate_alone(learned, monkeypatch, caplog, delay_steps, said):
    now = iter(np.arange(1, 1e4, 10 / learned.action.control_hz))
    monkeypatch.setattr(loops, "monotonic", lambda: float(next(now)))
    with (
        PolicyServer(TimedPolicy(learned)) as server,
        PolicyClient(server.address) as client,
        ControlLoop(client, rtc=False, delay_steps=delay_steps) as loop,
    ):
        for i in range(3 * CALLS):
            loop.act(make_observation(learned, i))
    assert len(_rates(caplog)) == said


def _rates(caplog):
    return [message for message in caplog.messages if "control steps come at" in message]


def test_whoever_asks_often_whether_an_action_is_there_is_at_no_other_rate(learned, monkeypatch, caplog):
    step, polled = 1 / learned.action.control_hz, 1e-4
    now = 1.0
    monkeypatch.setattr(loops, "monotonic", lambda: now)
    with (
        PolicyServer(TimedPolicy(learned)) as server,
        PolicyClient(server.address) as client,
        ControlLoop(client, rtc=False) as loop,
    ):
        monkeypatch.setattr(loops.Asked, "there", lambda asked: asked_often >= 3 * CALLS)
        for i in range(2 * CALLS):
            asked_often = 0
            while loop.act_if_ready(make_observation(learned, i)) is None:
                asked_often += 1
                now += polled
            now += step
    assert _rates(caplog) == []


def test_a_loop_with_a_clock_of_its_own_looks_at_no_rate(learned, monkeypatch, caplog):
    now = iter(np.arange(1, 1e4, 10 / learned.action.control_hz))
    monkeypatch.setattr(loops, "monotonic", lambda: float(next(now)))
    with (
        PolicyServer(TimedPolicy(learned)) as server,
        PolicyClient(server.address) as client,
        ControlLoop(client, rtc=False, clock=lambda: 1.0) as loop,
    ):
        for i in range(3 * CALLS):
            loop.act(make_observation(learned, i))
    assert _rates(caplog) == []


def test_depth_in_millimetres_is_refused(learned):
    camera = learned.observation.cameras[0]
    depth = {camera.name: np.full((camera.height, camera.width), 1200, np.uint16)}
    with (
        PolicyServer(TimedPolicy(learned)) as server,
        PolicyClient(server.address) as client,
        pytest.raises(
            PolicyClientError, match=r"uint16 is no distance in metres \(millimetres\? divide by 1000"
        ),
    ):
        client.predict(replace(make_observation(learned), depth=depth))


def test_a_jpeg_that_its_exif_turns_is_refused():
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, "JPEG", exif=exif)
    message = pb.Image(encoding=pb.IMAGE_ENCODING_JPEG, height=8, width=8, data=out.getvalue())
    with pytest.raises(FieldError, match="EXIF asks to turn it"):
        decode_image(message, 8, 8)


def test_a_jpeg_of_a_camera_that_writes_no_orientation_is_read():
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 0
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, "JPEG", exif=exif)
    message = pb.Image(encoding=pb.IMAGE_ENCODING_JPEG, height=8, width=8, data=out.getvalue())
    assert decode_image(message, 8, 8).shape == (8, 8, 3)


def test_intrinsics_of_pictures_of_another_size_are_said(learned):
    camera = learned.observation.cameras[0]
    k = np.array([[600, 0, 320], [0, 600, 240], [0, 0, 1]], np.float32)
    reach, seen = Reach(learned), replace(make_observation(learned), intrinsics={camera.name: k})
    (said,) = reach.lines(seen)
    assert "have their centre at (320, 240), and its pictures are 32 x 32" in said
    assert list(reach.lines(seen)) == []
