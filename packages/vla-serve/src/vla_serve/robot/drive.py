"""The loop of a robot: one command a control step, and the robot held where it is whenever there is none.

Whatever happens to the server, the robot is read and commanded at its rate: requests, waiting and
reconnecting go on in other threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vla_core.errors import UserError
from vla_core.types import Float, Observation

from vla_serve.clients.client import PolicyClient
from vla_serve.clients.control_loop import ControlLoop
from vla_serve.clients.errors import PolicyServerError, PolicyTimeout, PolicyUnavailable, SessionLost
from vla_serve.robot.commander import Commander
from vla_serve.robot.pace import Pace
from vla_serve.robot.protocol import Recorder, Robot
from vla_serve.robot.wiring import Wiring

RETRY_S = 0.5


@dataclass(frozen=True)
class DriveSettings:
    """How an episode goes.

    Args:
        instruction: what the robot is told.
        episode_s: it ends after so long; None: when it is told to.
        watchdog_s: without an answer for so long, the chunk is given up: its successor is asked for anew,
            from what the robot then sees.
        restart_s: without an answer for so long after that, the episode ends with an error.
        dry_run: nothing is sent; ``say`` is told what would be.
    """

    instruction: str
    episode_s: float | None = None
    watchdog_s: float = 1.0
    restart_s: float = 60.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("episode_s", "watchdog_s", "restart_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name}: must be positive and finite, got {value}")


@dataclass
class DriveReport:
    """What happened.

    Args:
        steps: control steps with a command of the policy.
        held: control steps at which the robot was held, for there was none.
        outages: how often answers stopped.
        overruns: control steps that took longer than they may: the robot or its cameras are slow.
        seconds: it all took.
        round_trips_ms: of the answers.
    """

    steps: int = 0
    held: int = 0
    outages: int = 0
    overruns: int = 0
    seconds: float = 0.0
    round_trips_ms: list[float] = field(default_factory=list)


def drive(
    robot: Robot,
    client: PolicyClient,
    loop: ControlLoop,
    wiring: Wiring,
    commander: Commander,
    settings: DriveSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    recorder: Recorder | None = None,
) -> DriveReport:
    """One episode with a connected robot, from the first answer to ``episode_s`` or ``stop``.

    Args:
        client, loop: with an open session.
        stop: asked at every control step; must return at once.
        say: told in a line when answers stop and come again.
        recorder: of the steps at which the policy commanded; the episode is not ended here.

    Raises:
        UserError: the robot or the policy is not what was promised.
        PolicyServerError: the server stayed away for ``restart_s``.
    """
    episode = _Episode(robot, client, loop, wiring, commander, settings, say, recorder)
    try:
        episode.run(stop)
    finally:
        episode.leave()
    return episode.report


class _Episode:
    def __init__(
        self,
        robot: Robot,
        client: PolicyClient,
        loop: ControlLoop,
        wiring: Wiring,
        commander: Commander,
        settings: DriveSettings,
        say: Callable[[str], None],
        recorder: Recorder | None,
    ) -> None:
        self._robot, self._client, self._loop = robot, client, loop
        self._wiring, self._commander, self._settings = wiring, commander, settings
        self._say, self._recorder = say, recorder
        self.report = DriveReport()
        self._waiting_since: float | None = None
        self._ended = threading.Event()
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="vla-reconnect")
        self._recovery: Future[None] | None = None

    def run(self, stop: Callable[[], bool]) -> None:
        settings, report = self._settings, self.report
        self._loop.reset(settings.instruction)
        self._commander.start(self._see().state)
        pace = Pace(self._wiring.spec.action.control_hz)
        start = time.monotonic()
        while not stop():
            report.seconds = time.monotonic() - start
            if settings.episode_s is not None and report.seconds >= settings.episode_s:
                break
            observation = self._see()
            action_A = self._ask(observation)
            if action_A is None:
                report.held += 1
                self._send(self._commander.hold(), "hold")
            else:
                report.steps += 1
                origin = self._loop.origin
                assert origin is not None
                told_A = self._send(self._commander.command(action_A, origin.state), "send")
                if self._recorder is not None and told_A is not None:
                    self._recorder.add(observation, told_A)
            pace.wait()
        report.overruns = pace.overruns

    def leave(self) -> None:
        """The robot is held, and what goes on in the background is ended."""
        self._ended.set()
        if self._commander.hold() is not None:
            self._send(self._commander.hold(), "hold")
        self._helper.shutdown()
        if self._recovery is None:
            self.report.round_trips_ms += self._loop.stats.round_trips_ms

    def _see(self) -> Observation:
        return self._wiring.observe(self._robot.get_observation(), self._settings.instruction)

    def _send(self, command_A: Any, what: str) -> Float | None:
        """Send a command; returns what happened as an action that can be recorded."""
        if command_A is None:
            return None
        names = self._wiring.command(command_A)
        if self._settings.dry_run:
            self._say(
                f"would {what}: " + ", ".join(f"{key} {_number(value)}" for key, value in names.items())
            )
            return self._commander.sent(command_A)
        said = self._robot.send_action(names)
        return self._commander.sent(self._wiring.really_sent(said, command_A))

    def _ask(self, observation: Observation) -> Float | None:
        """The policy's action of this step; None: hold."""
        if self._recovery is not None:
            if not self._recovery.done():
                return None
            self._recovery.result()
            self._recovery = None
            self._say("the server answers again")
        try:
            action_A = self._loop.act_if_ready(observation)
        except (PolicyServerError, SessionLost) as error:
            self._lose(str(error))
            return None
        if action_A is not None:
            self._waiting_since = None
            return action_A
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since > self._settings.watchdog_s:
            self._lose(f"no answer for {self._settings.watchdog_s:g} s")
        return None

    def _lose(self, why: str) -> None:
        """Answers stopped: ask for a new start, meanwhile hold."""
        self._say(f"{why}: holding position")
        self.report.outages += 1
        self._waiting_since = None
        self.report.round_trips_ms += self._loop.stats.round_trips_ms
        self._recovery = self._helper.submit(self._recover)

    def _recover(self) -> None:
        """Until the server answers; in the background. The old chunk is forgotten."""
        end, contract = time.monotonic() + self._settings.restart_s, self._client.contract
        while True:
            try:
                self._loop.reset(self._settings.instruction)
                break
            except (PolicyServerError, SessionLost) as error:
                if self._ended.is_set():
                    return
                if time.monotonic() > end:
                    raise PolicyServerError(f"{error} (for {self._settings.restart_s:g} s)") from error
                self._ended.wait(RETRY_S)
                try:
                    self._client.wait_ready(RETRY_S)
                except (PolicyTimeout, PolicyUnavailable):
                    continue
        if self._client.contract != contract:
            raise UserError("the server came back with another contract; start again")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str([float(f"{v:.4g}") for v in value])
