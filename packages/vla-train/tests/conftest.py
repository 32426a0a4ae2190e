"""A toy robot whose task is solvable from the image, and runs of fake parts on it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from vla_core.registry import override
from vla_core.sources import action_chunk
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import register_fakes
from vla_core.types import Observation, Sample
from vla_data.errors import BadDataError
from vla_train.testing.ranks import run_ranks


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> None:
    """What a shell starts with ``&`` ignores Ctrl-C, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class ToyConfig:
    n_episodes: int = 6
    length: int = 10
    seed: int = 0


class ToySource:
    """One camera whose brightness is the action, the same throughout an episode."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        self.config, self.horizon = config, horizon
        self.episodes = list(self.list_episodes(config) if episodes is None else episodes)
        rng = np.random.default_rng(config.seed)
        levels = rng.uniform(0, 1, (config.n_episodes, 1)).repeat(config.length, 1)
        self.levels = levels[self.episodes].astype(np.float32)
        action = self.levels.reshape(-1, 1).repeat(2, 1)
        state = np.zeros_like(action[:, :1]) + rng.uniform(-1, 1)
        self.spec = RobotSpec(
            ObservationSpec((CameraSpec("front", 16, 16),), (GroupSpec("height", 1, "m"),)),
            ActionSpec((GroupSpec("level", 2, "m"),), horizon, 10.0),
            NormStats({"action": VectorStats.from_rows(action), "state": VectorStats.from_rows(state)}),
        )

    @classmethod
    def list_episodes(cls, config: ToyConfig) -> Sequence[int]:
        return range(config.n_episodes)

    def __len__(self) -> int:
        return self.levels.size

    def episode(self, index: int) -> int:
        return self.episodes[index // self.config.length]

    def numeric(self, index: int) -> tuple[Any, Any, Any]:
        e, t = divmod(index, self.config.length)
        steps = np.arange(t, t + self.horizon)
        chunk = self.levels[e][steps.clip(max=self.config.length - 1)]
        mask = np.repeat((steps < self.config.length)[:, None], 2, 1)
        return np.zeros(1, np.float32), np.repeat(chunk[:, None], 2, 1), mask

    def chunk_end(self, index: int) -> int | None:
        end = index + self.horizon
        return end if end // self.config.length == index // self.config.length else None

    def __getitem__(self, index: int) -> Sample:
        e, t = divmod(index, self.config.length)
        state, actions, mask = self.numeric(index)
        image = np.full((16, 16, 3), round(255 * float(self.levels[e, t])), np.uint8)
        return Sample(Observation({"front": image}, "go to the level", state), actions, mask)


@dataclass(frozen=True)
class CountedConfig:
    robot: str = "counted"
    cameras: int = 1
    dim: int = 2
    hz: float = 10.0
    lengths: tuple[int, ...] = (6, 5, 7)
    number: int = 0
    bad: tuple[int, ...] = ()
    infinite: tuple[int, ...] = ()
    stuck: tuple[int, ...] = ()


class CountedSource:
    """A robot of any size whose state says which sample it is: ``1000 number + its frame in the data set``.

    The samples named in ``bad`` cannot be read, those in ``stuck`` take for ever, the actions of those in
    ``infinite`` are no numbers.
    """

    Config = CountedConfig

    def __init__(self, config: CountedConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        self.config, self.horizon = config, horizon
        self.chosen = list(self.list_episodes(config) if episodes is None else episodes)
        firsts = np.cumsum([0, *config.lengths])
        self.frames = np.concatenate([firsts[e] + np.arange(config.lengths[e]) for e in self.chosen])
        self.episodes = np.repeat(self.chosen, [config.lengths[e] for e in self.chosen])
        self.states = (1000.0 * config.number + self.frames)[:, None].astype(np.float32)
        self.actions = np.sin(self.frames[:, None] + np.arange(config.dim)).astype(np.float32)
        stats = {"state": VectorStats.from_rows(self.states), "action": VectorStats.from_rows(self.actions)}
        self.spec = RobotSpec(
            ObservationSpec(
                tuple(CameraSpec(f"camera_{i}", 16, 16) for i in range(config.cameras)),
                (GroupSpec("sample", 1, "1"),),
            ),
            ActionSpec((GroupSpec("arm", config.dim, "rad"),), horizon, config.hz),
            NormStats(stats),
            config.robot,
        )

    @classmethod
    def list_episodes(cls, config: CountedConfig) -> Sequence[int]:
        return range(len(config.lengths))

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, vector: str) -> Any:
        return {"state": self.states, "action": self.actions}[vector]

    def episode(self, index: int) -> int:
        return int(self.episodes[index])

    def numeric(self, index: int) -> tuple[Any, Any, Any]:
        stop = index + int((self.episodes[index:] == self.episodes[index]).sum())
        chunk, mask = action_chunk(self.actions, index, stop, self.horizon, self.spec.action.groups)
        return self.states[index], chunk, mask

    def __getitem__(self, index: int) -> Sample:
        if int(self.frames[index]) in self.config.bad:
            raise BadDataError(f"counted/{self.config.number}: frame {index}: broken picture")
        if int(self.frames[index]) in self.config.stuck:
            time.sleep(1000)
        state, actions, mask = self.numeric(index)
        if int(self.frames[index]) in self.config.infinite:
            actions = np.full_like(actions, np.nan)
        grey = np.full((16, 16, 3), 10 * self.config.number + 20, np.uint8)
        images = {camera.name: grey for camera in self.spec.observation.cameras}
        return Sample(
            Observation(images, f"robot {self.config.robot}", state, embodiment=self.config.robot),
            actions,
            mask,
        )


@pytest.fixture
def toy() -> Iterator[None]:
    """``toy`` and ``counted`` are sources, ``fake`` a backbone and a head."""
    undo = [override("vla.sources", "toy", ToySource), override("vla.sources", "counted", CountedSource)]
    with register_fakes():
        yield
    for back in undo:
        back()


@pytest.fixture
def toy_config(tmp_path: Path, toy: None) -> Path:
    """A config file of a run that takes a second or two."""
    config = {
        "framework": {
            "name": "QwenPI",
            "horizon": 4,
            "vlm": {"name": "fake"},
            "head": {"name": "fake"},
            "transforms": [{"name": "random_shift", "pixels": 1}, {"name": "normalize"}],
        },
        "datasets": {"train": [{"name": "toy"}], "val_fraction": 0.2},
        "trainer": {
            "max_steps": 8, "batch_size": 4, "warmup_steps": 2, "val_every": 4, "log_every": 2,
            "val_samples": 8, "device": "cpu", "learning_rate": {"base": 0.01},
        },
        "run_root_dir": str(tmp_path / "runs"),
        "run_id": "toy",
    }  # fmt: skip
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True)
class TwoRanks:
    """Runs on two real processes, in ``folder``."""

    folder: Path

    def command(self, runs: Mapping[str, list[str]], **more: Mapping[str, Any]) -> list[str]:
        """What each rank runs; ``more``: what ``rank_program.py`` may be told -> run -> that."""
        plan, program = self.folder / "plan.json", Path(__file__).with_name("rank_program.py")
        told = {name: {key: of[name] for key, of in more.items() if name in of} for name in runs}
        plan.write_text(
            json.dumps([{"name": name, "argv": argv} | told[name] for name, argv in runs.items()])
        )
        return [sys.executable, str(program), str(plan)]

    def launch(self, runs: Mapping[str, list[str]], **more: Mapping[str, Any]) -> None:
        """The runs (name -> arguments of vla-train) one after the other; fails where a rank does."""
        ended = run_ranks(self.command(runs, **more), folder=self.folder, forked=True)
        assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said[-3000:] for rank in ended)
        assert all("Traceback" not in rank.said for rank in ended), [rank.said for rank in ended]

    def seen(self, name: str, rank: int) -> dict[str, Any]:
        """What a rank wrote down of a run, see ``rank_program.py``."""
        return dict(json.loads((self.folder / f"{name}-{rank}.json").read_text()))


@pytest.fixture
def two_ranks(tmp_path: Path) -> TwoRanks:
    """On gloo and the CPU."""
    return TwoRanks(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("takes the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
