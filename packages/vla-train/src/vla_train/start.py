"""The checkpoint that a run starts from: its robot, its statistics, and where this run's differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from vla_core.checkpoint import weights_file
from vla_core.errors import UserError, suggest
from vla_core.specs import GroupSpec, RobotSpec
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
        mine, its = pipeline.input_spec, self.spec
        yield from _groups(where, "state", mine.observation.state, its.observation.state)
        yield from _groups(where, "action", mine.action.groups, its.action.groups)
        if mine.action.control_hz != its.action.control_hz:
            yield f"{where} steps of {mine.action.control_hz:g} Hz, not {its.action.control_hz:g}"
        transforms = [dict(node) for node in pipeline.nodes]
        for what in ("resize", "normalize"):
            here = [node for node in transforms if node.get("name") == what]
            there = [dict(node) for node in self.transforms if node.get("name") == what]
            if json.dumps(here, sort_keys=True) != json.dumps(there, sort_keys=True):
                yield f"{where} the transform {here or 'none'}, not {there or 'none'}"
        if not kept and pipeline.statistics.to_dict() != self.statistics.to_dict():
            yield f"{where} statistics of its own data; trainer.keep_statistics=true takes the checkpoint's"


def _groups(
    where: str, what: str, ours: tuple[GroupSpec, ...], theirs: tuple[GroupSpec, ...]
) -> Iterator[str]:
    """A line where a vector's numbers are others, though it may be as long."""
    names = [group.name for group in ours], [group.name for group in theirs]
    if names[0] != names[1]:
        order = "in the order " if sorted(names[0]) == sorted(names[1]) else ""
        yield f"{where} the {what} groups {order}{_said(ours)}, not {_said(theirs)}"
        return
    for mine, its in zip(ours, theirs, strict=True):
        for part in ("dim", "unit", "representation", "rotation", "gripper"):
            one, other = getattr(mine, part), getattr(its, part)
            if one != other:
                yield f"{where} the {what} group '{mine.name}' with {part} {one}, not {other}"


def _said(groups: tuple[GroupSpec, ...]) -> str:
    return ", ".join(f"{group.name} ({group.dim})" for group in groups) or "none"


def robots_of(path: str) -> list[str]:
    """The robots of a checkpoint, by their numbers; a backbone alone has none.

    Raises:
        UserError: not a checkpoint.
    """
    meta = json.loads((weights_file(Path(path)).parent / "meta.json").read_text("utf-8"))
    return [spec["embodiment"] for spec in meta["embodiments"]]


def check_numbers(path: str, theirs: Sequence[str], ours: Sequence[str], others: Sequence[str]) -> None:
    """Raise :class:`UserError` if a robot would get another one's, of a head with weights for each.

    Args:
        path: the checkpoint.
        theirs, ours: its robots and the run's, by their numbers.
        others: the modules of the model beside its head.
    """
    for number, name in enumerate(ours):
        if name not in theirs or theirs.index(name) == number:
            continue
        order = _ordered(theirs, ours)
        anew = f"trainer.reload_modules=[{','.join(others)}] starts the head as built"
        fix = f"list the data sets of datasets.train so that it is {', '.join(order)}"
        if not order:
            fix = f"no order of datasets.train helps, as {_absent(theirs, ours)} not trained here; {anew}"
        raise UserError(
            f"trainer.pretrained_checkpoint: the head has weights for each robot, by number; '{name}' is "
            f"{number} here and {theirs.index(name)} in {path} ({', '.join(theirs)}): {fix}"
        )


def _ordered(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """``ours`` with each robot that the checkpoint has at its number there; empty: there is no such order."""
    new = [name for name in ours if name not in theirs]
    order = [theirs[i] if i < len(theirs) and theirs[i] in ours else None for i in range(len(ours))]
    filled = [name or (new.pop(0) if new else "") for name in order]
    return filled if sorted(filled) == sorted(ours) else []


def _absent(theirs: Sequence[str], ours: Sequence[str]) -> str:
    names = [name for name in theirs if name not in ours]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


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
    own = (framework.get("embodiments") or {}).get(name) or framework
    return Start(folder, RobotSpec.from_dict(robots[name], raw), model, own.get("transforms") or [])
