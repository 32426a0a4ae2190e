"""Simulators that run beside the policy: one process a task and camera setting, many episodes at a time.

The policy looks only once a chunk, so frames in between are not rendered; physics is what it always is.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.types import Observation

MAX_STEPS = 200


@dataclass(frozen=True)
class Setting:
    """A task under cameras on an orbit (degrees)."""

    task: str
    orbit: tuple[float, float]
    cameras: tuple[str, ...]
    image_size: int


def _work(pipe: Connection, setting: Setting, width: int) -> None:
    """Serve rounds: a list of (slot, seed or actions) in, a list of (slot, observation or success) out."""
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv

    class ChunkEnv(MetaWorldEnv):
        """Renders only when asked to."""

        looking = True

        def _observe(self) -> Observation:
            return super()._observe() if self.looking else Observation({}, "")

    config = MetaWorldConfig(
        task=setting.task,
        cameras=setting.cameras,
        image_size=setting.image_size,
        max_steps=MAX_STEPS,
        depth=True,
        intrinsics=True,
        extrinsics=True,
        camera_orbit=setting.orbit,
    )
    envs = [ChunkEnv(config) for _ in range(width)]
    pipe.send("ready")
    while True:
        request = pipe.recv()
        if request is None:
            break
        answers: list[tuple[int, Any]] = []
        for slot, what in request:
            env = envs[slot]
            if isinstance(what, int):
                env.looking = True
                answers.append((slot, env.reset(what)))
                continue
            for i, action in enumerate(what):
                env.looking = i == len(what) - 1
                result = env.step(action)
                if result.terminated or result.truncated:
                    answers.append((slot, result.success))
                    break
            else:
                answers.append((slot, result.observation))
        pipe.send(answers)
    for env in envs:
        env.close()


class Simulators:
    """Processes for several settings; :meth:`run` plays episodes of all of them against one policy.

    Args:
        settings: one process each.
        width: episodes a process plays at a time.
    """

    def __init__(self, settings: Sequence[Setting], width: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.settings, self.width = list(settings), width
        self.pipes, self.processes = [], []
        for setting in settings:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, setting, width), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()

    def run(self, seeds: Sequence[int], execute: int, act: Any) -> list[dict[int, bool]]:
        """Play the episodes ``seeds`` in every setting.

        Args:
            seeds: the same for all settings, so that policies and cameras are compared on equal starts.
            execute: actions of a chunk that are executed before the next look.
            act: ``(observations, noise seeds) -> action arrays [T, A]``, one for each.

        Returns:
            for each setting, seed -> success.
        """
        waiting = [list(seeds) for _ in self.settings]
        results: list[dict[int, bool]] = [{} for _ in self.settings]
        playing: list[dict[int, int]] = [{} for _ in self.settings]
        rounds: dict[tuple[int, int], int] = {}
        requests: list[list[tuple[int, Any]]] = []
        for k in range(len(self.settings)):
            requests.append([])
            for slot in range(min(self.width, len(seeds))):
                requests[k].append((slot, self._next(waiting[k], playing[k], slot)))
        while any(requests):
            looks: list[tuple[int, int, Observation]] = []
            for pipe, request in zip(self.pipes, requests, strict=True):
                if request:
                    pipe.send(request)
            busy = [k for k, request in enumerate(requests) if request]
            requests = [[] for _ in self.settings]
            for k in busy:
                for slot, answer in self.pipes[k].recv():
                    if isinstance(answer, Observation):
                        looks.append((k, slot, answer))
                        continue
                    results[k][playing[k].pop(slot)] = bool(answer)
                    if waiting[k]:
                        requests[k].append((slot, self._next(waiting[k], playing[k], slot)))
            noise_seeds = []
            for k, slot, _ in looks:
                seed = playing[k][slot]
                rounds[k, seed] = rounds.get((k, seed), -1) + 1
                # One stream an episode, the same for every policy and camera setting.
                noise_seeds.append(1000 * seed + rounds[k, seed])
            for (k, slot, _), actions in zip(looks, _batched(act, looks, noise_seeds), strict=True):
                requests[k].append((slot, actions[:execute]))
        return results

    @staticmethod
    def _next(waiting: list[int], playing: dict[int, int], slot: int) -> int:
        playing[slot] = waiting.pop(0)
        return playing[slot]


def _batched(
    act: Any, looks: Sequence[tuple[int, int, Observation]], noise_seeds: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    if looks:
        yield from act([observation for _, _, observation in looks], noise_seeds)
