"""The simulator processes of a rollout, seen from the parent.

A process runs one task and is replaced for the next: many simulators cannot open a second graphics
context in one process. A process that dies, or whose simulator raises, takes one episode with it, which is
reported.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from vla_core.errors import UserError
from vla_core.parent import end_with_parent

from vla_serve.rollouts.worker import (
    Broken,
    Done,
    EpisodeJob,
    EpisodeResult,
    Refused,
    Setup,
    instructions,
    work,
)

MAX_DEATHS = 3
"""So many processes that die one after another, without an episode between, end the rollout."""

_GONE = (EOFError, ConnectionResetError)  # what reading from a dead process raises

_spawn = multiprocessing.get_context("spawn")


class SimulatorDied(RuntimeError):
    """A simulator process ended by itself where no episode can be blamed for it."""


@dataclass
class _Worker:
    task: str
    process: SpawnProcess
    pipe: Connection
    job: EpisodeJob | None = None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What starts here never sees an interrupt of the keyboard, which a terminal sends to all."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first start of a process starts this too, and unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(target: Any, *args: Any) -> tuple[SpawnProcess, Connection]:
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_with_us, args=(target, *args, theirs), daemon=True)
    with _undisturbed():
        process.start()
    theirs.close()  # so that the death of the process ends our reading
    return process, ours


def _with_us(target: Any, *args: Any) -> None:
    end_with_parent()
    target(*args)


def _tell(pipe: Connection, message: EpisodeJob | None) -> None:
    # To a process that has just died: the next read finds out, and knows which episode it had.
    with contextlib.suppress(BrokenPipeError):
        pipe.send(message)


def ask_instructions(setup: Setup, seeds: Sequence[int]) -> list[str]:
    """What a task's simulator says in each episode."""
    process, pipe = _start(instructions, setup, list(seeds))
    try:
        answer = pipe.recv()
    except _GONE:
        process.join()
        raise SimulatorDied(
            f"the simulator died (exit code {process.exitcode}) while it was asked for instructions"
        ) from None
    process.join()
    if isinstance(answer, Refused):
        raise UserError(answer.message)
    said: list[str] = answer
    return said


class Pool:
    """Iterate over it for finished episodes, in order of completion.

    Args:
        setups: task -> what its workers share.
        jobs: task -> its episodes.
        workers: processes at a time.
        max_failures_videos: per task.
    """

    def __init__(
        self,
        setups: Mapping[str, Setup],
        jobs: Mapping[str, Sequence[EpisodeJob]],
        workers: int,
        max_failures_videos: int,
    ) -> None:
        self._setups = setups
        self._jobs = {task: list(reversed(todo)) for task, todo in jobs.items()}
        self._limit, self._max_videos = workers, max_failures_videos
        self._workers: list[_Worker] = []
        self._videos = dict.fromkeys(setups, 0)
        self._deaths = 0
        self.executed_steps: int | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()
            worker.process.join()

    def __iter__(self) -> Iterator[Done]:
        while True:
            self._fill()
            if not self._workers:
                break
            for pipe in wait([worker.pipe for worker in self._workers]):
                worker = next(w for w in self._workers if w.pipe is pipe)
                finished = self._receive(worker)
                if finished is not None:
                    yield finished
            if self._deaths >= MAX_DEATHS:
                yield from self._give_up()
                break

    def _fill(self) -> None:
        """Start processes where they are needed most."""
        while len(self._workers) < self._limit:
            share = {
                task: len(todo) / (1 + sum(w.task == task for w in self._workers))
                for task, todo in self._jobs.items()
                # A worker that is starting up will take one of them.
                if len(todo) > sum(w.task == task and w.job is None for w in self._workers)
            }
            if not share:
                return
            task = max(share, key=lambda name: share[name])
            process, pipe = _start(work, self._setups[task])
            self._workers.append(_Worker(task, process, pipe))

    def _receive(self, worker: _Worker) -> Done | None:
        try:
            message = worker.pipe.recv()
        except _GONE:
            return self._died(worker)
        if isinstance(message, Refused):
            raise UserError(message.message)
        if isinstance(message, Broken):
            return self._died(worker, message.message)
        if isinstance(message, int):  # it has opened its session and says what it executes of a chunk
            self.executed_steps = message
            self._send(worker)
            return None
        finished: Done = message
        self._deaths = 0
        self._videos[worker.task] += finished.episode.video is not None
        self._send(worker)
        return finished

    def _send(self, worker: _Worker) -> None:
        worker.job = None
        todo = self._jobs[worker.task]
        if not todo:
            _tell(worker.pipe, None)
            worker.process.join()
            self._workers.remove(worker)
            return
        job = todo.pop()
        if job.video == "failures":
            same_task = [w.job for w in self._workers if w.task == worker.task and w.job is not None]
            may_write = sum(other.video == "failures" for other in same_task)
            if self._videos[worker.task] + may_write >= self._max_videos:
                job = replace(job, video="none")
        worker.job = job
        _tell(worker.pipe, job)

    def _died(self, worker: _Worker, reason: str = "") -> Done | None:
        worker.process.join()
        self._workers.remove(worker)
        self._deaths += 1
        job = worker.job
        if job is None:
            # Before its first episode: blame the one it would have run.
            if not self._jobs[worker.task]:
                return None
            job = self._jobs[worker.task].pop()
        reason = reason or (
            f"the simulator process died (exit code {worker.process.exitcode}); its output says why"
        )
        return Done(EpisodeResult(worker.task, job.seed, instruction=job.instruction, error=reason))

    def _give_up(self) -> Iterator[Done]:
        reason = f"not run: {MAX_DEATHS} simulator processes died in a row"
        for worker in self._workers:
            if worker.job is not None:
                yield Done(EpisodeResult(worker.task, worker.job.seed, error=reason))
        for task, todo in self._jobs.items():
            for job in reversed(todo):
                yield Done(EpisodeResult(task, job.seed, error=reason))
            todo.clear()
