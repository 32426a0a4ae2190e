"""Data sets of one robot whose numbers do not mean the same, though their specs are equal; their splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vla_core.errors import ConfigError
from vla_core.registry import override
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_sample
from vla_core.types import Sample
from vla_train.config import DatasetsConfig
from vla_train.dataloading.data_sets import Data, open_data
from vla_train.dataloading.leaks import Split, leaks

ARM = ("pan", "lift", "grip")


@dataclass(frozen=True)
class ArmConfig:
    names: tuple[str, ...] = ARM
    scale: float = 1.0
    grip: tuple[float, float] = (0.0, 1.0)


class ArmSource:
    """An arm of two joints and a gripper that is open or closed."""

    Config = ArmConfig

    def __init__(self, config: ArmConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        self.config = config
        rng = np.random.default_rng(0)
        rows = np.c_[config.scale * rng.standard_normal((40, 2)), rng.choice(config.grip, 40)]
        stats = VectorStats.from_rows(rows)
        self.spec = RobotSpec(
            ObservationSpec((CameraSpec("top", 16, 16),), (GroupSpec("state", 3, "unknown"),)),
            ActionSpec((GroupSpec("action", 3, "unknown"),), horizon, 10.0),
            NormStats({"state": stats, "action": stats}),
        )

    @classmethod
    def list_episodes(cls, config: ArmConfig) -> Sequence[int]:
        return range(4)

    def __len__(self) -> int:
        return 40

    def dim_names(self, vector: str) -> Sequence[str]:
        return self.config.names

    def episode(self, index: int) -> int:
        return index // 10

    def numeric(self, index: int) -> tuple[Any, Any, Any]:
        sample = self[index]
        return sample.observation.state, sample.actions, sample.action_mask

    def __getitem__(self, index: int) -> Sample:
        return make_sample(self.spec, index)


def opened(*nodes: dict[str, Any]) -> Data:
    undo = override("vla.sources", "arm", ArmSource)
    try:
        return open_data(DatasetsConfig([{"name": "arm", **node} for node in nodes], val_fraction=0.0), 4)
    finally:
        undo()


def test_the_same_arm_twice_is_not_remarked() -> None:
    assert opened({}, {"scale": 3.0}).notes == []
    # Another name for a joint's position is none for the joint.
    assert opened({}, {"names": [f"{name.upper()}.pos" for name in ARM]}).notes == []
    assert opened({}, {"names": ["", "", ""]}).notes == []
    # An arm that rests in one of the tasks.
    assert opened({}, {"scale": 1e-3, "grip": [0.0, 0.0]}).notes == []


def test_dims_in_another_order_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        opened({}, {"names": ["lift", "pan", "grip"]})
    assert str(error.value) == (
        "data sets of one robot, 'default', must agree: state: datasets.train.0 has its dims in the order "
        "pan, lift, grip, datasets.train.1 in the order lift, pan, grip; put them in one order with a robot "
        "file; if they are of two robots, give one another name, e.g. datasets.train.1.embodiment=default_2"
    )
    two = opened({}, {"names": ["lift", "pan", "grip"], "embodiment": "other"})
    assert two.notes == []


def test_other_names_are_said() -> None:
    said = opened({}, {"names": ["pan", "shoulder", "grip"]}).notes
    assert [line.partition(":")[0] for line in said] == [
        "state of the data sets arm and arm_2",
        "action of the data sets arm and arm_2",
    ]
    assert "the same dims are called lift and shoulder; are they the same" in said[0]


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            {"scale": 57.3, "grip": [0.0, 57.3]},
            "in the other: degrees and radians?",
        ),
        (
            {"grip": [-1.0, 1.0]},
            "'state[2]' goes from 0 to 1 in one and from -1 to 1 in the other: a gripper",
        ),
        ({"scale": 1e3, "grip": [0.0, 1e3]}, ": m and mm?"),
        ({"scale": 4000.0}, "'state' reaches "),
    ],
)
def test_numbers_of_another_scale_are_said(node: dict[str, Any], said: str) -> None:
    notes = opened({}, node).notes
    assert len(notes) == 2
    assert said in notes[0]


def test_episodes_that_one_entry_holds_out_and_another_trains_on(tmp_path: Path) -> None:
    here, again = str(tmp_path), f"{tmp_path}/x/.."
    one, two = Split("one", here, [0, 1, 2], [3]), Split("two", again, [3, 4], [5])
    (said,) = leaks([one, two])
    assert said.startswith(
        "data set one holds out episodes that two trains on (3): their validation says nothing"
    )
    assert list(leaks([one, Split("two", str(tmp_path / "other"), [3, 4], [5])])) == []
    assert list(leaks([one, Split("two", None, [3], []), Split("three", None, [], [3])])) == []
    assert list(leaks([one, Split("again", here, [0, 1, 2], [3])])) == []  # twice the same, for its weight
