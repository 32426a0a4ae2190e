"""The loop of a robot against a real server: at its rate, and held while there is no answer."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.types import ActionChunk
from vla_serve import ControlLoop, PolicyClient, PolicyServer, PolicyServerError
from vla_serve.robot import Commander, DriveSettings, RobotRepackConfig, Wiring, drive
from vla_serve.robot.pace import Pace

HZ, HORIZON = 50.0, 8


class Ramp:
    """Answers the state it is told plus 1, 2, 3, ...; a ``gate`` holds it back."""

    framework = "Ramp"

    def __init__(self) -> None:
        group = GroupSpec("joint", 1, "deg")
        stats = VectorStats.from_rows(np.array([[-20.0], [20.0]]))
        observation = ObservationSpec((CameraSpec("eye", 4, 4),), (group,))
        self.specs = {
            "arm": RobotSpec(
                observation, ActionSpec((group,), HORIZON, HZ), NormStats({"action": stats}), "arm"
            )
        }
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    def act(self, observations, seeds, steps=None):
        self.asked += 1
        assert self.gate.wait(20)
        spec = self.specs["arm"].action
        ramp = np.arange(1, HORIZON + 1, dtype=np.float32)[:, None]
        return [ActionChunk(o.state[None] + ramp, spec) for o in observations]


class Joint:
    """A robot that is where it was sent, and remembers when."""

    def __init__(self) -> None:
        self.observation_features = {"joint.pos": float, "eye": (4, 4, 3)}
        self.action_features = {"joint.pos": float}
        self.where, self.sent, self.times = 0.0, [], []

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self):
        return {"joint.pos": self.where, "eye": np.zeros((4, 4, 3), np.uint8)}

    def send_action(self, action):
        self.where = action["joint.pos"]
        self.sent.append(self.where)
        self.times.append(time.monotonic())
        return action


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class Kept(list):
    """A recorder."""

    def add(self, observation, action):
        self.append((float(observation.state[0]), float(action[0])))


@pytest.fixture
def policy():
    return Ramp()


@pytest.fixture
def server(policy):
    with PolicyServer(policy, max_queue=1) as running:
        yield running
        policy.gate.set()


def run(server, robot, settings, during=lambda: None, repack=None, **more):
    """Drive in this thread, ``during`` beside it; the report, and what was said."""
    said = more.pop("said", [])
    with (
        PolicyClient(server.address, timeout_s=more.pop("timeout_s", 5.0)) as client,
        ControlLoop(client, rtc=False, execute_steps=4) as loop,
    ):
        repack = repack or RobotRepackConfig()
        wiring = Wiring(client.contract, robot, repack)
        commander = Commander(wiring, repack, client.action_bounds, more.pop("steps", {"joint": 2.0}))
        beside = threading.Thread(target=during)
        beside.start()
        try:
            report = drive(robot, client, loop, wiring, commander, settings, say=said.append, **more)
        finally:
            beside.join()
    return report, said, commander


def test_commands_come_at_the_rate_of_the_contract_within_its_bounds(server):
    robot, kept = Joint(), Kept()
    # As many commands as a free machine gives in a second and a half.
    enough = lambda: len(robot.sent) >= 1.5 * HZ  # noqa: E731
    report, said, commander = run(
        server, robot, DriveSettings("go", watchdog_s=20.0), stop=enough, recorder=kept
    )
    assert commander.bounded["joint"] > 5, "the ramp goes on beyond what was demonstrated"
    sent = np.array(robot.sent)
    assert sent.max() == 20.0
    assert np.abs(np.diff(sent, prepend=0.0)).max() <= 2.0
    # Late steps are never made up for, so this holds on a busy machine too.
    assert report.steps + report.held <= report.seconds * HZ + 2
    assert np.diff(robot.times).mean() >= 0.9 / HZ
    assert report.outages == 0
    assert said == []
    assert len(report.round_trips_ms) > 1
    # What is recorded is what was sent: each action is where the next observation is.
    states, actions = np.array(kept).T
    np.testing.assert_allclose(states[1:], actions[:-1], atol=1e-5)
    assert len(kept) == report.steps


def test_a_robot_is_held_while_answers_stay_away_and_goes_on_afterwards(server, policy):
    robot, held, said = Joint(), [], []

    def during():
        until(lambda: len(robot.sent) >= 5)
        policy.gate.clear()
        until(lambda: said[-1:] == ["no answer for 0.2 s: holding position"])
        first = len(robot.sent)
        until(lambda: len(robot.sent) >= first + 20)  # by a command at every step
        held.extend(robot.sent[first:])
        policy.gate.set()

    def over():
        return bool(held) and robot.where != held[-1]

    settings = DriveSettings("go", watchdog_s=0.2)
    report, _, _ = run(server, robot, settings, during, said=said, stop=over)
    assert set(held) == {held[0]}
    assert report.held >= 20
    assert report.outages >= 1
    assert said[:2] == ["no answer for 0.2 s: holding position", "the server answers again"]
    assert np.abs(np.diff(robot.sent)).max() <= 2.0


def test_a_server_that_stays_away_ends_the_episode_with_the_robot_held(policy):
    robot = Joint()
    server = PolicyServer(policy).__enter__()
    settings = DriveSettings("go", episode_s=60, watchdog_s=0.3, restart_s=1.0)

    def during():
        until(lambda: len(robot.sent) > 10)
        server.__exit__(None, None, None)

    with pytest.raises(PolicyServerError, match="for 1 s"):
        run(server, robot, settings, during, timeout_s=0.5)
    assert len(robot.sent) > 10
    assert robot.sent[-1] == robot.sent[-5]


def test_a_dry_run_sends_nothing_and_says_what_it_would(server):
    robot, said = Joint(), []
    settings = DriveSettings("go", dry_run=True, watchdog_s=20.0)
    report, _, _ = run(server, robot, settings, said=said, stop=lambda: len(said) > 3)
    assert robot.sent == []
    assert report.steps > 0
    assert said[0] == "would send: joint.pos 1"
    assert said[-1].startswith("would hold: joint.pos")


def test_it_stops_when_told_to_and_no_command_follows_the_hold(server):
    robot = Joint()
    stop = threading.Event()
    moved = lambda: (until(lambda: len(robot.sent) > 5), stop.set())  # noqa: E731
    run(server, robot, DriveSettings("go"), moved, stop=stop.is_set)
    assert robot.sent[-1] == robot.sent[-2], "the last command is a hold"


def test_a_robot_that_breaks_its_promise_stops_all(server):
    class Broken(Joint):
        def get_observation(self):
            seen = super().get_observation()
            return {**seen, "joint.pos": float("nan")} if len(self.sent) > 3 else seen

    robot = Broken()
    with pytest.raises(UserError, match=r"joint.pos gave .nan., expected 1 finite"):
        run(server, robot, DriveSettings("go", episode_s=5))
    assert np.isfinite(robot.sent).all()


def test_bounds_hold_in_the_units_of_the_robot(server):
    repack = RobotRepackConfig(units={"joint": "rad"})
    robot = Joint()
    enough = lambda: len(robot.sent) >= HZ  # noqa: E731
    run(server, robot, DriveSettings("go", watchdog_s=20.0), repack=repack, steps={}, stop=enough)
    assert np.max(robot.sent) == pytest.approx(np.deg2rad(20.0))


@pytest.mark.parametrize("field", ["episode_s", "watchdog_s", "restart_s"])
def test_settings_are_checked(field):
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=field):
            DriveSettings("go", **{field: value})


def test_a_pace_counts_what_takes_too_long_and_never_hurries():
    pace = Pace(100.0)
    time.sleep(0.05)
    pace.wait()
    assert pace.overruns == 1
    start = time.monotonic()
    for _ in range(5):
        pace.wait()
    assert time.monotonic() - start >= 0.045
