"""What a training run leaves in its folder, read into memory.

Shapes: N frames, T action steps, A action dims.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from vla_core.axes import dim_names
from vla_core.errors import UserError
from vla_core.specs import GroupSpec

from vla_train.report._rollout import Rollout, read_rollout

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Curves by name: step -> value, steps ascending.

    A resumed run logs some steps twice; the later line counts, as the weights come from it.
    ``unreadable`` counts lines that are no JSON objects (a run killed while writing leaves one).
    """

    curves: Mapping[str, Mapping[int, float]]
    unreadable: int = 0

    def names(self, prefix: str) -> list[str]:
        """Names that start with ``prefix``, sorted."""
        return sorted(name for name in self.curves if name.startswith(prefix))

    def curve(self, name: str) -> tuple[Array, Array]:
        """(steps, values); empty if the run did not log it."""
        points = self.curves.get(name, {})
        return np.array(list(points), np.float64), np.array(list(points.values()), np.float64)

    def last(self, name: str) -> float | None:
        """The newest value, or None."""
        return next(reversed(list(self.curves.get(name, {}).values())), None)

    @property
    def seconds(self) -> float | None:
        """Of training until the last line, in all stretches of a resumed run, each of which counts from 0."""
        clock = list(self.curves.get("elapsed_s", {}).values())
        ends = [a for a, b in pairwise(clock) if b < a]
        return sum(ends) + clock[-1] if clock else None

    @property
    def last_step(self) -> int:
        return max(step for points in self.curves.values() for step in points)


@dataclass(frozen=True)
class Predictions:
    """Held-out episodes in real units.

    ``episode [N]``, ``frame [N]``; ``recorded [N, A]``; ``predicted [N, T, A]``, the chunk predicted
    at each frame; a name and a unit for each of the A dims.
    """

    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    recorded: Array
    predicted: Array
    names: tuple[str, ...]
    units: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A training sample as the policy gets it: pictures by camera, ``[H, W, 3]`` uint8."""

    label: str
    episode: int
    frame: int
    instruction: str
    images: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Run:
    """A run folder. ``info`` is ``run.json`` (empty if there is none), ``config`` the YAML text."""

    path: Path
    info: Mapping[str, Any]
    config: str | None
    metrics: Metrics
    predictions: Predictions | None
    rollouts: Sequence[Rollout]
    seen: Sequence[Seen] = ()

    @property
    def rollout(self) -> Rollout | None:
        """The run's own, or the first that was named."""
        return self.rollouts[0] if self.rollouts else None

    @property
    def name(self) -> str:
        return str(self.info.get("run_id") or self.path.resolve().name)

    @property
    def max_steps(self) -> int | None:
        """``trainer.max_steps`` of the config."""
        trainer = (yaml.safe_load(self.config or "") or {}).get("trainer") or {}
        steps = trainer.get("max_steps")
        return steps if isinstance(steps, int) else None

    @property
    def resumed(self) -> list[int]:
        """Steps after which it went on."""
        found = self.info.get("stretches")
        return [s["after_step"] for s in found if s["after_step"]] if isinstance(found, list) else []

    def part(self, key: str) -> Mapping[str, Any]:
        """A mapping of ``run.json``; empty if absent."""
        value = self.info.get(key)
        return value if isinstance(value, Mapping) else {}

    def dims(self) -> dict[str, str]:
        """Action dim -> unit, in order."""
        if self.predictions is not None:
            return dict(zip(self.predictions.names, self.predictions.units, strict=True))
        units: dict[str, str] = {}
        for group in self.info.get("action_groups") or ():
            name, dim, symbol = str(group.get("name")), int(group.get("dim", 1)), str(group.get("unit", ""))
            spec = GroupSpec(name, dim, symbol, rotation=group.get("rotation", "none"))
            units |= dict.fromkeys(dim_names((spec,)), symbol)
        return units


def _read_metrics(path: Path) -> Metrics:
    fix = "give the folder of a run in which at least one step was logged"
    if not path.is_file():
        raise UserError(f"{path.parent}: there is no metrics.jsonl; {fix}")
    curves: dict[str, dict[int, float]] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            unreadable += 1
            continue
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, {})[step] = float(value)
    if not curves:
        raise UserError(f"{path}: holds no metrics; {fix}")
    return Metrics({name: dict(sorted(points.items())) for name, points in curves.items()}, unreadable)


def _read_predictions(path: Path) -> Predictions | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            recorded, predicted = np.asarray(data["recorded"], float), np.asarray(data["predicted"], float)
            names = tuple(str(name) for name in data["names"])
            out = Predictions(
                episode=np.asarray(data["episode"], np.int64),
                frame=np.asarray(data["frame"], np.int64),
                recorded=recorded,
                predicted=predicted,
                names=names,
                units=tuple(str(unit) for unit in data["units"]) if "units" in data else ("",) * len(names),
            )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it or write it again") from error
    n, dims = len(out.episode), len(names)
    shapes = (out.frame.shape == (n,), recorded.shape == (n, dims), len(out.units) == dims)
    if n == 0 or not all(shapes) or predicted.ndim != 3 or predicted.shape[::2] != (n, dims):
        raise UserError(
            f"{path}: shapes disagree (recorded {recorded.shape}, predicted {predicted.shape}, "
            f"{n} frames, {dims} names); delete it or write it again"
        )
    return out


def _read_seen(path: Path) -> list[Seen]:
    if not path.is_file():
        return []
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = dict(data)
        rows = zip(*(arrays[key] for key in ("label", "episode", "frame", "instruction")), strict=True)
        found = []
        for k, (label, episode, frame, said) in enumerate(rows):
            images: dict[str, NDArray[np.uint8]] = {}
            while (name := f"camera_{k}_{len(images)}") in arrays:
                images[str(arrays[name])] = arrays[f"image_{k}_{len(images)}"]
            found.append(Seen(str(label), int(episode), int(frame), str(said), images))
        return found
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file.

    Raises:
        UserError: not JSON, or not an object.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it or write it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_rollouts(run: Path, others: Sequence[Path]) -> list[Rollout]:
    own = run / "rollout"
    found: dict[Path, Rollout] = {}
    for path in (own, *others):
        results = read_json(path / "results.json")
        if results is None:
            if path is own:
                continue
            raise UserError(
                f"--rollout: {path} has no results.json; give a directory that vla-rollout --out wrote"
            )
        videos = sorted(video.name for video in (path / "videos").glob("*.mp4"))
        name = os.path.relpath(path.resolve(), run.resolve()).replace(os.sep, "/")
        found.setdefault(path.resolve(), read_rollout(results, videos, name, path))
    return list(found.values())


def read_run(path: Path, rollouts: Sequence[Path] = ()) -> Run:
    """Read a run folder, and what ``vla-rollout`` wrote into its ``rollout`` and into further directories.

    Raises:
        UserError: no such folder, no metrics, a directory without results, or a file that cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give the folder that vla-train wrote")
    config = path / "config.yaml"
    return Run(
        path=path,
        info=read_json(path / "run.json") or {},
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        metrics=_read_metrics(path / "metrics.jsonl"),
        predictions=_read_predictions(path / "predictions.npz"),
        rollouts=_read_rollouts(path, rollouts),
        seen=_read_seen(path / "seen.npz"),
    )


def finite(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)
