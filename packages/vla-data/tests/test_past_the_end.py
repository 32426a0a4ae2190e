"""Both sources say the same of the steps after an episode: absolute held, delta zero, relative held."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from vla_core.specs import GroupSpec
from vla_data import ArraysConfig, ArraysSource, LeRobotConfig, LeRobotSource
from vla_data._arrays_writer import ArraysWriter


@pytest.mark.parametrize(("representation", "held"), [("absolute", 1), ("delta", 0), ("relative", 1)])
def test_sources_agree_past_the_end(
    write_lerobot, toy_spec, toy_demonstrations, tmp_path, representation, held
):
    group = GroupSpec("position", 2, "m", representation=representation)
    spec = dataclasses.replace(toy_spec, action=dataclasses.replace(toy_spec.action, groups=(group,)))
    writer = ArraysWriter(tmp_path / "arrays", spec, toy_demonstrations[0], "toy")
    writer.add(toy_demonstrations[1])
    writer.close({})
    columns = toy_demonstrations[1].columns
    root = write_lerobot(
        tmp_path / "lerobot", lengths=(9,), columns={k: columns[k] for k in ("observation.state", "action")}
    )
    data = spec.to_dict()
    (root / "meta/vla_spec.json").write_text(json.dumps(data))
    for source in (
        LeRobotSource(LeRobotConfig(str(root)), 6),
        ArraysSource(ArraysConfig(str(tmp_path / "arrays")), 6),
    ):
        _, actions, mask = source.numeric(7)
        assert mask[:, 0].tolist() == [True, True, False, False, False, False]
        assert np.array_equal(actions[:2], columns["action"][7:])
        assert np.array_equal(actions[2:], held * np.repeat(columns["action"][8:], 4, 0))
