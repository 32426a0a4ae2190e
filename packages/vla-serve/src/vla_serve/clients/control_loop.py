"""The control loop around a policy that takes longer than a control step: ask early, swap at the right step.

Shapes: T steps of a chunk, A action dims.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

from vla_core.ensembling import Ensembling
from vla_core.episodes import RTC_OR_ENSEMBLE, Measured
from vla_core.errors import UserError
from vla_core.types import Float, Observation

from vla_serve.clients.called_rate import CalledRate
from vla_serve.clients.chunks import Continuation, ServedChunk
from vla_serve.clients.client import PolicyClient
from vla_serve.clients.control_request import Answer, Asked
from vla_serve.clients.control_steps import checked_execute_steps
from vla_serve.clients.ensemble import ensemble
from vla_serve.clients.errors import PolicyBusy, SessionLost
from vla_serve.clients.own_arrays import OwnArrays, without_pictures

REMEMBERED = 10
"""The delay that is reckoned with is the longest of so many measured ones (as in arXiv 2506.07339)."""


@dataclass
class LoopStats:
    """What happened since the last reset.

    Args:
        round_trips_ms: of each answer that took over.
        late: answers that took over later than they were made for: the robot executed more of the old chunk
            than the new one begins with, and may jerk. None of an ensemble.
        stalls: steps at which the robot waited, its chunk used up; the first chunk of an episode is none.
    """

    round_trips_ms: list[float] = field(default_factory=list)
    late: int = 0
    stalls: int = 0


class ControlLoop:
    """Gives an action for every control step, while the next chunk is computed in the background.

    Call :meth:`act` once a control step. Some steps before its chunk ends the loop asks for the next one with
    the observation of that step, executes the old chunk meanwhile, and swaps when the answer has come and the
    steps are over that it was made for. A context manager; between :meth:`reset` and leaving it the client is
    the loop's.

    Args:
        client: with an open session, and ``real_time_chunking=True`` unless ``rtc`` is False.
        rtc: answers continue the chunk that is executed (real-time chunking). False: every chunk is planned
            afresh, as any policy can, and the robot may jerk at the swap.
        execute_steps: control steps from one request to the next, at most what the delay leaves of a chunk;
            None: half of the chunk, rounded up; with ``ensembling`` as few as the delay allows.
        delay_steps: None: for a robot, whose time goes on. The delay is measured, an answer that is late
            takes over late, and a chunk that is used up makes the robot wait. A number: for a simulator,
            whose time stands still. Every answer takes over exactly so many steps after its observation.
            ``measured``: for a simulator whose time goes on in control steps, one a call. An answer is there
            after as many as it took by the clock, an episode's first at once; all else is as with None. Call
            :meth:`act_if_ready` and hold the robot at None.
        ensembling: the action of a step is the mean of what the chunks say that have come by then; needs
            ``rtc=False``. The loop asks as often as one request at a time allows: at every step while the
            delay is at most one, unless ``execute_steps`` says less often.
        view_keys: of every request, see :meth:`PolicyClient.predict`.
        busy_s: a busy server is asked again for so long.
        clock: in seconds, by which answers take as long as they do; it is read in the loop's own thread.

    Raises:
        UserError: a delay or a number of steps that does not fit the chunk or the policy, or a client that
            was not opened for real-time chunking; action groups that have no mean (``ensembling``).
    """

    def __init__(
        self,
        client: PolicyClient,
        *,
        rtc: bool = True,
        execute_steps: int | None = None,
        delay_steps: int | Measured | None = None,
        ensembling: Ensembling | None = None,
        view_keys: Mapping[str, str] | None = None,
        busy_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rtc and ensembling is not None:
            raise UserError(RTC_OR_ENSEMBLE)
        self._client, self._rtc, self._view_keys, self._busy_s = client, rtc, view_keys, busy_s
        self._clock = clock
        self._fixed = delay_steps if isinstance(delay_steps, int) else None
        self._simulated, self._wanted, self._how = delay_steps == "measured", execute_steps, ensembling
        self._robots_time = delay_steps is None and clock is time.monotonic  # a clock of one's own tells less
        self._fit()
        self._measured = deque[int](maxlen=REMEMBERED)
        self._worker, self._own = ThreadPoolExecutor(1, thread_name_prefix="vla-loop"), OwnArrays()
        self._begin()

    def _fit(self) -> None:
        """The loop's steps within the contract of the session."""
        spec = self._client.contract.action
        self._horizon, self._hz, self._most = spec.horizon, spec.control_hz, spec.horizon
        if self._rtc:
            if self._client.max_delay_steps is None:
                raise UserError(
                    "rtc: this policy cannot continue a chunk (PolicyClient(real_time_chunking=True) says "
                    "why); use rtc=False"
                )
            self._most = self._client.max_delay_steps
        self._called = CalledRate(self._hz)
        self._mixed = None if self._how is None else ensemble(spec, self._how)
        self._execute = checked_execute_steps(
            self._wanted, spec.horizon, self._fixed or 0, self._most, self._mixed is not None
        )

    def __enter__(self) -> ControlLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def execute_steps(self) -> int:
        """Control steps from one request to the next; fewer while the delay is long."""
        return max(1, min(self._execute, self._horizon - self.delay_steps))

    @property
    def delay_steps(self) -> int:
        """The delay that the next request is made for."""
        if self._fixed is not None:
            return self._fixed
        return max(self._measured, default=1)

    @property
    def stats(self) -> LoopStats:
        """Since the last reset."""
        return self._stats

    @property
    def origin(self) -> Observation | None:
        """What the executed chunk answers, but its pictures: relative actions are offsets from its state."""
        return self._origin

    def reset(self, instruction: str | None = None) -> None:
        """Start a new episode; a request under way is waited for, and its answer dropped.

        A session that was lost (it expired, or the server restarted) is opened anew. A policy that is served
        there now and does not fit what this client sends and takes, or this loop, is an error.
        """
        self.drop_chunk()
        try:
            self._client.reset(instruction)
        except SessionLost:
            self._client.open()
            self._fit()
            self._client.reset(instruction)
        self._begin()

    def _begin(self) -> None:
        self._step = self._start = self._tick = 0
        self._chunk: ServedChunk | None = None
        self._origin: Observation | None = None
        self._asked: Asked | None = None
        self._stats = LoopStats()
        self._called.begin()

    def act(self, observation: Observation, seed: int | None = None) -> Float:
        """The action ``[A]`` of this control step, in the units of the contract.

        Args:
            observation: of now, sent if this is a step at which the loop asks; its arrays may be reused.
            seed: of the policy's noise if it is.

        Raises:
            PolicyClientError, PolicyServerError: what became of the request under way. The control step is
                not over then: call again to go on with the chunk and ask anew.
        """
        action_A = self._act(observation, seed, wait=True)
        assert action_A is not None
        return action_A

    def act_if_ready(self, observation: Observation, seed: int | None = None) -> Float | None:
        """As :meth:`act`, without waiting: None while there is no action for this control step.

        The step is not over then: whoever calls keeps the robot where it is, and calls again.
        """
        action_A = self._act(observation, seed, wait=False)
        self._tick += action_A is None  # time goes on
        return action_A

    def _act(self, observation: Observation, seed: int | None, wait: bool) -> Float | None:
        if self._robots_time:
            self._called.call(monotonic())
        self._take(wait)
        if self._asked is None and (self._chunk is None or self._executed >= self.execute_steps):
            self._ask(observation, seed)
            self._take(wait)
        if self._chunk is None or self._used_up:
            return None
        action_A: Float = self._chunk.actions[self._executed]
        if self._mixed is not None:
            action_A = self._mixed.action(self._step)
        self._step += 1
        self._tick += 1
        return action_A

    @property
    def _executed(self) -> int:
        """Control steps since the observation of the chunk, which is the index of the action that is due."""
        return self._step - self._start

    @property
    def _used_up(self) -> bool:
        return self._chunk is None or self._executed >= self._horizon

    def _ask(self, observation: Observation, seed: int | None) -> None:
        observation = self._own.copy(observation)  # sent later on; there is never a second under way
        delay, previous = 0, None
        if self._chunk is not None and not self._used_up:
            # A mean takes what an answer says as soon as it is there.
            planned = self.delay_steps if self._mixed is None else self._fixed or 0
            delay = min(planned, self._horizon - self._executed)
            if self._rtc:
                delay = min(delay, self._most)
                previous = self._chunk.after(self._executed, delay)
        answer = self._worker.submit(self._predict, observation, seed, self._step, previous)
        self._asked = Asked(self._step, delay, observation, answer, self._tick, self._chunk is None)

    def _predict(
        self, observation: Observation, seed: int | None, step: int, previous: Continuation | None
    ) -> Answer:
        """In the worker."""
        start = self._clock()
        while True:
            try:
                chunk = self._client.predict(
                    observation, seed, step=step, previous=previous, view_keys=self._view_keys
                )
            except PolicyBusy as error:
                if self._clock() + error.retry_after_s > start + self._busy_s:
                    raise
                time.sleep(error.retry_after_s)
            else:
                assert self._client.timings is not None
                return chunk, self._client.timings, self._clock() - start

    def _take(self, wait: bool) -> None:
        """Swap to the answer under way if that is due; ``wait`` for it if the robot cannot go on without."""
        asked = self._asked
        if asked is None:
            return
        age = self._step - asked.step
        there = asked.there_at(self._tick, self._hz) if self._simulated else asked.there()
        if there and asked.arrived_after is None:
            asked.arrived_after = max(1, age)  # the step that asked is executed from the old chunk
        ready = there or self._fixed is not None
        if not self._used_up and not (ready and age >= asked.delay):
            return
        if not there:
            asked.stalled = True
            self._called.hold()
            if not wait:
                return
        self._asked = None
        chunk, timings, took_s = asked.answer.result()
        self._stats.round_trips_ms.append(timings.round_trip_ms)
        if self._fixed is None:
            # While the robot waits no steps go by: then the clock knows better.
            if (after := asked.arrived_after) is None or asked.stalled or asked.free:
                after = max(1, age, math.ceil(took_s * self._hz))
            self._measured.append(after)
            self._stats.stalls += self._chunk is not None and asked.stalled
            self._stats.late += self._mixed is None and age > asked.delay
        if self._mixed is not None:
            self._mixed.add(chunk, asked.step)
        self._chunk, self._origin, self._start = chunk, without_pictures(asked.observation), asked.step

    def drop_chunk(self) -> None:
        """Forget the chunk and a request under way: the next action answers the next observation."""
        asked, self._asked, self._chunk = self._asked, None, None
        if self._mixed is not None:
            self._mixed.reset()
        if asked is not None:
            asked.answer.exception()  # of no interest any more

    def close(self) -> None:
        """Wait for a request under way, and end the background thread; the client stays open."""
        self.drop_chunk()
        self._worker.shutdown()
