"""The checkpoint that a run starts from: its robot, its statistics, and where this run's differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from vla_core.checkpoint import weights_file
from vla_core.errors import UserError, suggest
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.transforms import Pipeline


@dataclass(frozen=True)
class Start:
    """One robot of a checkpoint.

    Args:
        folder: the checkpoint.
        spec: its robot, with statistics in real units.
        statistics: at the normalisation step.
        transforms: its pipeline as config nodes.
    """

    folder: Path
    spec: RobotSpec
    statistics: NormStats
    transforms: list[Mapping[str, Any]]

    def with_statistics(self, spec: RobotSpec) -> RobotSpec:
        """``spec`` with the checkpoint's statistics.

        Raises:
            UserError: the robots' vectors do not have the same meaning.
        """
        for what, ours, theirs in (
            ("state", spec.observation.state, self.spec.observation.state),
            ("action", spec.action.groups, self.spec.action.groups),
        ):
            if ours != theirs:
                raise UserError(
                    f"trainer.keep_statistics: the data's {what} groups "
                    f"{[f'{g.name} ({g.dim})' for g in ours]} are not those of {self.folder}, "
                    f"{[f'{g.name} ({g.dim})' for g in theirs]}; leave it out"
                )
        return replace(spec, statistics=self.spec.statistics)

    def differences(self, pipeline: Pipeline, kept: bool) -> Iterator[str]:
        """A line for each thing that the weights were not trained on; ``kept``: statistics are its own."""
        where = f"warning: unlike {self.folder}, this run has"
        ours = pipeline.input_spec.observation.cameras
        theirs = self.spec.observation.cameras
        names = ([c.name for c in ours], [c.name for c in theirs])
        if sorted(names[0]) != sorted(names[1]):
            yield f"{where} the cameras {names[0]}, not {names[1]}"
        elif names[0] != names[1]:
            yield f"{where} the cameras in the order {names[0]}, not {names[1]}"
        transforms = [dict(node) for node in pipeline.nodes]
        for what in ("resize", "normalize"):
            mine = [node for node in transforms if node.get("name") == what]
            its = [dict(node) for node in self.transforms if node.get("name") == what]
            if json.dumps(mine, sort_keys=True) != json.dumps(its, sort_keys=True):
                yield f"{where} the transform {mine or 'none'}, not {its or 'none'}"
        if not kept and pipeline.statistics.to_dict() != self.statistics.to_dict():
            yield f"{where} statistics of its own data; trainer.keep_statistics=true takes the checkpoint's"


def has_robots(path: str) -> bool:
    """Whether a checkpoint is of a policy; a backbone alone has no robot.

    Raises:
        UserError: not a checkpoint.
    """
    meta = json.loads((weights_file(Path(path)).parent / "meta.json").read_text("utf-8"))
    return bool(meta["embodiments"])


def read_start(path: str, embodiment: str) -> Start:
    """The robot ``embodiment`` of a checkpoint, or its only one.

    Raises:
        UserError: not a checkpoint, or one of several other robots.
    """
    folder = weights_file(Path(path)).parent
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    robots = {spec["embodiment"]: spec for spec in meta["embodiments"]}
    name = embodiment if embodiment in robots or len(robots) != 1 else next(iter(robots))
    if name not in robots:
        raise UserError(
            f"trainer.pretrained_checkpoint: {folder} has no robot '{name}'{suggest(name, robots)}"
        )
    stats = json.loads((folder / "norm_stats.json").read_text("utf-8"))[name]
    framework = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["framework"]
    raw, model = (NormStats.from_dict(stats[key]) for key in ("raw", "model"))
    return Start(folder, RobotSpec.from_dict(robots[name], raw), model, framework.get("transforms") or [])
