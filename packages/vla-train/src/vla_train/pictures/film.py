"""Pictures of the same moments twice: as a data set has them, and as its simulator draws them now."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from vla_core import registry
from vla_core.config import build_config
from vla_core.envs import Env, guarded
from vla_core.envs.recorded import Recorded
from vla_core.errors import UserError, suggest
from vla_core.parent import end_with_parent
from vla_data import ArraysConfig, ArraysSource, LeRobotConfig, LeRobotSource

from vla_train.pictures.compare import Picture

Views = Mapping[str, Picture]


@dataclass(frozen=True)
class Moment:
    """A frame of an episode: ``recorded`` and ``simulated`` are pictures by camera."""

    episode: int
    task: str
    frame: int
    recorded: Views
    simulated: Views


def moments(data: Path, recorded: Recorded, options: Mapping[str, Any], tasks: Sequence[str],
            step: int) -> list[Moment]:  # fmt: skip
    """Of the first episode of each task, the start and the frame after ``step`` recorded actions.

    Args:
        data: the data set's directory.
        recorded: what it keeps of its episodes.
        options: of the simulator, over the recorded ones.
        tasks: those to look at; empty: all that were recorded.

    Raises:
        UserError: no such task, or a simulator that refuses what it is told or dies.
    """
    first: dict[str, int] = {}
    for number, episode in enumerate(recorded.episodes):
        first.setdefault(episode.task, number)
    for task in tasks:
        if task not in first:
            raise UserError(f"--task: '{task}' is not in {data}{suggest(task, first)}")
    source = _open(data)
    starts: dict[int, int] = {}
    for i in range(len(source)):
        starts.setdefault(source.episode(i), i)
    if len(starts) != len(recorded.episodes):
        raise UserError(
            f"{data}: {len(starts)} episodes, but the starts of {len(recorded.episodes)} are stored"
        )
    begins = [starts[key] for key in sorted(starts)]
    env_class = registry.load("vla.envs", recorded.env)
    found = []
    for task in tasks or first:
        number = first[task]
        episode = recorded.episodes[number]
        frames = sorted({0, min(step, len(episode.actions) - 1)})
        config = build_config(env_class.Config, {**recorded.options, **options, "task": task}, where="env")
        make = functools.partial(guarded, env_class, config, recorded.env, task)
        views = _simulated(make, episode.seed, episode.actions, frames)
        for frame, simulated in zip(frames, views, strict=True):
            shown = source[begins[number] + frame].observation.images
            found.append(Moment(number, task, frame, shown, simulated))
    return found


def _open(data: Path) -> ArraysSource | LeRobotSource:
    if (data / "meta").is_dir():
        return LeRobotSource(LeRobotConfig(str(data)), 1)
    return ArraysSource(ArraysConfig(str(data)), 1)


def _simulated(
    make: Callable[[], Env], seed: int, actions: NDArray[Any], frames: Sequence[int]
) -> list[Views]:
    """In a process of its own, as every simulator."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_film, make, seed, actions, frames).result()
        except BrokenProcessPool as error:
            raise UserError("the simulator's process died; its output says why") from error


def _film(make: Callable[[], Env], seed: int, actions: NDArray[Any], frames: Sequence[int]) -> list[Views]:
    env = make()
    with closing(env):
        observation = env.reset(seed)
        seen: list[Views] = []
        for frame in range(frames[-1] + 1):
            if frame in frames:
                seen.append(dict(observation.images))
            if frame < frames[-1]:
                observation = env.step(actions[frame]).observation
        return seen
