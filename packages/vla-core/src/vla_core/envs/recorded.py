"""What a recorder keeps of its episodes, so that they can be played through the simulator again.

One ``vla_replay.npz`` beside a data set's own files (in ``meta/`` of a LeRobot set). Shapes: F frames of all
episodes, S state dims (0 without a state), A action dims.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.errors import UserError

FILE = "vla_replay.npz"


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as it happened.

    Args:
        task: name in the simulator.
        seed: of the episode's start.
        success: whether the recorder saw the task achieved.
        actions: ``[N, A]``, as they were executed: with noise, where the data set's own are clean.
        states: ``[N, S]``, what was observed before each action; S is 0 for a robot without a state.
    """

    task: str
    seed: int
    success: bool
    actions: NDArray[np.float32]
    states: NDArray[np.float32]


@dataclass(frozen=True)
class Recorded:
    """All episodes of a data set; ``options`` are the simulator's, without the task."""

    env: str
    options: Mapping[str, Any]
    episodes: Sequence[RecordedEpisode]


def write(directory: Path, recorded: Recorded) -> None:
    """Write :data:`FILE` into ``directory``."""
    episodes = recorded.episodes
    about = {
        "env": recorded.env,
        "options": dict(recorded.options),
        "episodes": [
            {"task": e.task, "seed": e.seed, "success": e.success, "frames": len(e.actions)} for e in episodes
        ],
    }
    np.savez_compressed(
        directory / FILE,
        about=np.array(json.dumps(about)),
        actions=np.concatenate([e.actions for e in episodes]),
        states=np.concatenate([e.states for e in episodes]),
    )


def read(dataset: Path) -> Recorded:
    """The starts and actions of the data set in this directory.

    Raises:
        UserError: no such directory, nothing of the kind in it, or a damaged file.
    """
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such data set")
    file = next((path for path in (dataset / "meta" / FILE, dataset / FILE) if path.is_file()), None)
    if file is None:
        raise UserError(
            f"{dataset}: the starts of its episodes are not stored (no {FILE}), so they cannot be replayed; "
            "record it again with vla-data record"
        )
    try:
        with np.load(file, allow_pickle=False) as data:
            about = json.loads(str(data["about"]))
            actions, states = data["actions"], data["states"]
        nodes = about["episodes"]
        ends = np.cumsum([node["frames"] for node in nodes])
        if not (len(ends) and ends[-1] == len(actions) == len(states)):
            raise ValueError("frames and episodes disagree")
        episodes = [
            RecordedEpisode(
                str(node["task"]), int(node["seed"]), bool(node["success"]), actions[a:b], states[a:b]
            )
            for node, a, b in zip(nodes, [0, *ends[:-1]], ends, strict=True)
        ]
        return Recorded(str(about["env"]), about["options"], episodes)
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read ({error}); record the data set again") from error
