"""One simulator process of a rollout: one environment, one client, episodes on demand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from vla_core.ensembling import Ensembling
from vla_core.envs import Env, SimulatorError, guarded
from vla_core.envs.recorded import RecordedEpisode
from vla_core.episodes import Measured
from vla_core.errors import UserError
from vla_core.history import NOW, RememberingEnv, deltas_of, present
from vla_core.types import Float, Observation

from vla_serve.clients.client import PolicyClient
from vla_serve.clients.control_loop import ControlLoop
from vla_serve.clients.errors import PolicyServerError, PolicyTimeout, PolicyUnavailable, SessionLost
from vla_serve.messages.codec import Encoding
from vla_serve.rollouts import mp4, report
from vla_serve.rollouts.expert import ExpertLoop
from vla_serve.rollouts.hold import held_steps, holding
from vla_serve.rollouts.replay import ReplayLoop
from vla_serve.rollouts.told import Hidden, told

RETRY_S = 0.5
"""Between two looks for a server that went away."""

Videos = Literal["failures", "all", "none"]


@dataclass(frozen=True)
class Setup:
    """What all episodes of a worker share; ``delay_steps`` None: the simulator waits for each answer.

    ``stop_at`` is the other task of a swap experiment. ``replay``: seed -> the episode that is played
    instead of a policy's answers. ``access``: ``tls`` and ``token`` of clients.
    """

    env_class: type
    env_config: Any
    env: str
    task: str
    address: str
    policy: str
    embodiment: str
    encoding: Encoding
    timeout_s: float
    execute_steps: int | None
    rtc: bool
    delay_steps: int | Measured | None
    stop_at: str | None
    hide: Hidden | None
    hold_steps: int | Measured
    ensembling: Ensembling | None
    video_dir: Path
    thumbnail_dir: Path
    error_dir: Path
    restart_s: float = 120.0
    replay: Mapping[int, RecordedEpisode] | None = None
    access: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def client(self, **more: Any) -> PolicyClient:
        """Of the server; not opened."""
        return PolicyClient(
            self.address,
            policy=self.policy,
            embodiment=self.embodiment,
            timeout_s=self.timeout_s,
            **self.access,
            **more,
        )


@dataclass(frozen=True)
class EpisodeJob:
    """One episode; ``instruction`` None: what the simulator says."""

    seed: int
    instruction: str | None
    video: Videos


@dataclass(frozen=True)
class EpisodeResult:
    """What came of an episode; ``success`` None and ``error`` set when it did not run to its end.

    ``state_deviation``: of a replay, the greatest difference to the recorded state. ``held_steps``: those of
    ``steps`` at which the robot held still for an answer. ``score``: the benchmark's partial credit, where
    it gives any.
    """

    task: str
    seed: int
    success: bool | None = None
    steps: int | None = None
    instruction: str | None = None
    achieved: tuple[str, ...] = ()
    latency_ms_mean: float | None = None
    video: str | None = None
    error: str | None = None
    state_deviation: float | None = None
    held_steps: int = 0
    score: float | None = None


@dataclass(frozen=True)
class Done:
    """An episode, the round trip of each of its requests (empty after an error), and who answered them."""

    episode: EpisodeResult
    latencies_ms: tuple[float, ...] = ()
    server: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A mistake of the user's that every episode would meet."""

    message: str


@dataclass(frozen=True)
class Broken:
    """The simulator raised something; its process ends, for nobody knows what state it is in."""

    message: str


def noise_seed(episode_seed: int, step: int) -> int:
    """Seed of a request: fixed by episode and control step, whatever the workers and tasks."""
    return (abs(episode_seed) * 1_000_003 + step) % 2**63


def run_episode(env: Env, loop: ControlLoop | ExpertLoop | ReplayLoop, setup: Setup, job: EpisodeJob) -> Done:
    """Reset, then act until success, truncation, the step limit or the end of what was recorded."""
    most = loop.begin(job.seed) if isinstance(loop, ReplayLoop) else env.max_steps
    frames: list[NDArray[np.uint8]] = []
    images: Mapping[str, NDArray[np.uint8]] = {}

    def seen(observation: Observation) -> Observation:
        nonlocal images
        images = present(observation.images)
        if job.video != "none":
            frames.append(mp4.side_by_side(images))
        return told(observation, job.instruction, setup.hide)

    loop.reset()
    observation = seen(env.reset(job.seed))
    instruction, achieved = observation.instruction, set[str]()
    success, over, steps = False, False, 0
    last: Float | None = None
    held = 0
    act: Callable[[Observation, int], Float | None] = loop.act
    if isinstance(loop, ControlLoop) and setup.delay_steps == "measured":
        act = loop.act_if_ready
    score: float | None = None
    while not over:
        answers = len(loop.stats.round_trips_ms)
        action = act(observation, noise_seed(job.seed, steps))
        # An answer that took time: the robot held still meanwhile. The first one it had before the start.
        holds = 0
        if action is None:
            holds = 1  # its chunk is used up, and the next one not there
        elif last is not None and len(loop.stats.round_trips_ms) > answers:
            took_ms = loop.stats.round_trips_ms[-1]
            holds = held_steps(setup.hold_steps, took_ms, env.action_spec.control_hz)
        commands = [] if last is None else [holding(env.action_spec, last)] * holds
        still = len(commands)
        if action is not None:
            commands.append(action)
            last = action
        for index, command in enumerate(commands):
            result = env.step(command)
            held += index < still
            said, observation = observation.instruction, seen(result.observation)
            steps += 1
            success |= result.success
            achieved |= result.achieved
            score = score if result.score is None else result.score
            over = success or result.terminated or result.truncated or steps >= min(most, env.max_steps)
            # Either task ends a swapped episode, so that neither has more time than the other.
            over |= setup.stop_at in achieved
            if over:
                break
            if observation.instruction != said and isinstance(loop, ControlLoop):
                loop.drop_chunk()  # it was planned for the instruction before
                break
    thumbnail = setup.thumbnail_dir / report.name_of(setup.task, job.seed)
    thumbnail.write_bytes(report.thumbnail(mp4.side_by_side(images)))
    video = None
    if job.video == "all" or (job.video == "failures" and not success):
        video = f"{setup.task}_{job.seed}_{'success' if success else 'failure'}.mp4"
        mp4.write(setup.video_dir / video, frames, env.action_spec.control_hz)
    episode = EpisodeResult(
        setup.task,
        job.seed,
        success,
        steps,
        instruction,
        tuple(sorted(achieved)),
        float(np.mean(loop.stats.round_trips_ms)) if loop.stats.round_trips_ms else None,
        video,
        state_deviation=loop.deviation if isinstance(loop, ReplayLoop) else None,
        held_steps=held,
        score=score,
    )
    return Done(episode, tuple(loop.stats.round_trips_ms))


def _run_through(env: Env, client: PolicyClient, loop: ControlLoop, setup: Setup, job: EpisodeJob) -> Done:
    """The episode, from its start again when the server went away and came back within ``restart_s``."""
    end: float | None = None
    while True:
        try:
            return run_episode(env, loop, setup, job)
        except (PolicyUnavailable, SessionLost) as error:
            end = end or time.monotonic() + setup.restart_s
            if time.monotonic() > end:
                raise PolicyServerError(str(error)) from error
            time.sleep(RETRY_S)
            # It may be gone again before the session is open: then the next turn says so.
            with contextlib.suppress(PolicyUnavailable, PolicyTimeout):
                client.wait_ready(max(RETRY_S, end - time.monotonic()))
                client.open()


def _moments(setup: Setup) -> tuple[int, ...]:
    """Moments that the policy wants to see."""
    with closing(setup.client()) as client:
        return deltas_of(client.policy_contract().observation)


def work(setup: Setup, pipe: Connection) -> None:
    """Serve jobs from ``pipe`` until it sends None. The unexpected ends it, traceback and all."""
    try:
        deltas = _moments(setup) if setup.address else NOW
        env: Any = guarded(setup.env_class, setup.env_config, setup.env, setup.task)
        if len(deltas) > 1:
            env = RememberingEnv(env, deltas)
        if not setup.address:
            with closing(env):
                known = ExpertLoop(env) if setup.replay is None else ReplayLoop(setup.replay)
                pipe.send(known.execute_steps)
                while (job := pipe.recv()) is not None:
                    pipe.send(run_episode(env, known, setup, job))
            return
        with (
            closing(env),
            setup.client(
                observation_spec=env.observation_spec,
                action_spec=env.action_spec,
                encoding=setup.encoding,
                real_time_chunking=setup.rtc,
            ) as client,
            ControlLoop(
                client,
                rtc=setup.rtc,
                execute_steps=setup.execute_steps,
                delay_steps=setup.delay_steps or 0,
                ensembling=setup.ensembling,
                busy_s=setup.timeout_s,
            ) as loop,
        ):
            pipe.send(loop.execute_steps)
            while (job := pipe.recv()) is not None:
                try:
                    pipe.send(_run_through(env, client, loop, setup, job))
                except PolicyServerError as error:
                    pipe.send(Done(EpisodeResult(setup.task, job.seed, error=str(error))))
    except SimulatorError as error:
        pipe.send(Broken(str(_kept(error, setup))))
    except UserError as error:
        pipe.send(Refused(str(error)))


def _kept(error: SimulatorError, setup: Setup) -> SimulatorError:
    episode = "start" if error.seed is None else error.seed
    return error.kept(setup.error_dir / f"{setup.task.replace('/', '_')}_{episode}.txt")


def instructions(setup: Setup, seeds: list[int], pipe: Connection) -> None:
    """Send what the simulator says in each episode; in a process of its own, as every simulator."""
    try:
        env = guarded(setup.env_class, setup.env_config, setup.env, setup.task)
        with closing(env):
            pipe.send([env.reset(seed).instruction for seed in seeds])
    except SimulatorError as error:
        pipe.send(Refused(str(_kept(error, setup))))
    except UserError as error:
        pipe.send(Refused(str(error)))
