"""What is in a dataset: a table, warnings, and a picture of one episode.

The picture needs matplotlib (extra ``vla-data[inspect]``). Shapes: F frames, D dims, N frames of an episode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.axes import axes_of
from vla_core.errors import ConfigError, UserError
from vla_core.specs import GroupSpec
from vla_core.types import Float

from vla_data.formats.depth import depth_of_cameras
from vla_data.formats.layout import Layout
from vla_data.formats.opening import open_layout
from vla_data.lerobot import LeRobotConfig, LeRobotSource
from vla_data.robot.binding import declared_cameras
from vla_data.robot.modality import FILE as MODALITY
from vla_data.robot.modality import read_modality
from vla_data.robot.vectors import out_of_range

_STRIP = 7  # images of a camera in the picture
_NAMED = 6  # constant dims that are named


def dim_names(groups: Sequence[GroupSpec]) -> list[str]:
    """``name[axis] (unit)`` for every dim of the groups; the axis is a number where it has no name."""
    return [
        f"{g.name} ({g.unit})" if g.dim == 1 else f"{g.name}[{axis}] ({g.unit})"
        for g in groups
        for axis in axes_of(g)
    ]


def warnings_of(source: LeRobotSource) -> list[str]:
    """What a trainer should know: another rate, constant dims, no state, values out of range."""
    found = list(source.notes)
    for vector, groups in (
        ("state", source.spec.observation.state),
        ("action", source.spec.action.groups),
    ):
        rows = source.rows(vector)
        if rows is None:
            found.append(f"there is no {vector}")
            continue
        low, high = rows.min(0), rows.max(0)
        still = [n for n, a, b in zip(dim_names(groups), low, high, strict=True) if a == b]
        if still:
            more = f" and {len(still) - _NAMED} more" if len(still) > _NAMED else ""
            found.append(
                f"{len(still)} of {rows.shape[1]} {vector} dims are constant and carry no information: "
                f"{', '.join(still[:_NAMED])}{more}"
            )
    robot, where = source.binding.robot, source.binding.where
    for which, described, values in (
        ("state", robot.state, source.frames.state),
        ("action", robot.action, source.frames.action),
    ):
        for name, (least, most) in out_of_range(described, values).items():
            found.append(f"{which} {name} is in [{least:g}, {most:g}], beyond the range in {where}")
    lengths = source.lengths()
    short = [e for e, n in lengths.items() if n < 0.2 * float(np.median(list(lengths.values())))]
    if short:
        found.append(f"episodes {short} are shorter than a fifth of the median")
    return found


def _range_lines(title: str, names: Sequence[str], rows: Float) -> list[str]:
    width = max(34, *map(len, names))
    lines = [f"{title:<{width + 2}}{'min':>10}{'1 %':>10}{'mean':>10}{'99 %':>10}{'max':>10}{'std':>10}"]
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    columns = (rows.min(0), q01, rows.mean(0), q99, rows.max(0), rows.std(0))
    for i, name in enumerate(names):
        lines.append(f"  {name:<{width}}" + "".join(f"{column[i]:>10.4f}" for column in columns))
    return lines


def recorded_names(source: LeRobotSource, layout: Layout, which: str) -> list[str]:
    """What the info calls each dim of a vector; nothing if that is its group or was converted."""
    vector = source.frames.state if which == "state" else source.frames.action
    names = source.binding.dim_names(layout, which, vector)
    own = [{g.name, *(f"{g.name}.{i}" for i in range(g.dim))} for g in vector.groups for _ in range(g.dim)]
    return ["" if name in taken else name for name, taken in zip(names, own, strict=True)]


def _camera_lines(source: LeRobotSource) -> list[str]:
    return [
        f"camera    {c.name}, {c.width} x {c.height}, from {source.binding.cameras[c.name]}"
        for c in source.spec.observation.cameras
    ]


def _resampled(source: LeRobotSource, layout: Layout, fps: float | None) -> list[str]:
    if fps is None:
        return []
    known = {e.index: len(e) for e in layout.episodes}
    frames = sum(known[index] for index in source.lengths())
    return [
        f"resampled {layout.fps:g} Hz to {fps:g} Hz: {frames} frames to {len(source)} steps of "
        f"{layout.fps / fps:.4g} frames; deltas are composed, so a command may exceed what was recorded"
    ]


def describe(path: Path, robot: str | None = None, fps: float | None = None) -> str:
    """The table: episodes, frames, rate, features, tasks, ranges, warnings.

    Args:
        path: the data set.
        robot: YAML file that describes the robot; None: what the data set says.
        fps: control rate to read it at; None: as recorded.

    Raises:
        UserError: no dataset there, or one that training refuses.
    """
    layout = open_layout(path)
    present, absent = declared_cameras(layout, robot)
    config = LeRobotConfig(str(path), tuple(present) if absent else None, robot=robot, fps=fps)
    source = LeRobotSource(config, horizon=1)
    lengths = np.array(list(source.lengths().values()))
    depth, unread = depth_of_cameras(layout, layout.episodes)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    seconds = len(source) / (fps or layout.fps)
    lines = [
        f"{path}  (LeRobot {layout.info['codebase_version']}, {size / 1e6:.2f} MB)",
        f"robot     {source.spec.embodiment}, {source.spec.action.control_hz:g} Hz",
        f"episodes  {len(lengths)}, of {lengths.min()} to {lengths.max()} frames "
        f"(median {np.median(lengths):g})",
        f"frames    {len(source)} ({seconds:.0f} s)",
        *_resampled(source, layout, fps),
        f"groups    of {source.binding.where}",
        *_camera_lines(source),
        *(f"depth     {name}, from {key}" for name, key in depth.items()),
        "",
        "features",
    ]
    for key, feature in layout.features.items():
        codec = (feature.get("info") or {}).get("video.codec", "")
        shape = "x".join(map(str, feature["shape"]))
        lines.append(f"  {key:<34}{feature['dtype']:>10}  {shape} {codec}".rstrip())
    spec = source.spec
    for title, vector, groups in (
        ("state", "state", spec.observation.state),
        ("action", "action", spec.action.groups),
    ):
        rows = source.rows(vector)
        if rows is not None:
            names = zip(dim_names(groups), recorded_names(source, layout, vector), strict=True)
            lines += ["", *_range_lines(title, [f"{a} {b}".rstrip() for a, b in names], rows)]
    said = Counter(source.instruction(e) for e in source.lengths())
    lines += ["", f"instructions ({len(said)})"]
    lines += [f"  {count:>5} episodes  {text}" for text, count in said.most_common(20)]
    if len(said) > 20:
        lines.append(f"  and {len(said) - 20} more")
    problems = [f"camera '{name}' ('{key}') has no pictures: {why}" for name, (key, why) in absent.items()]
    problems += [f"'{key}' holds depth maps that are not read: {why}" for key, why in unread.items()]
    modality = read_modality(layout) if source.binding.where.endswith(MODALITY) else None
    problems += [f"meta/modality.json: '{key}' is not read" for key in (modality.ignored if modality else ())]
    problems += warnings_of(source)
    lines += ["", "warnings" if problems else "no warnings", *(f"  {problem}" for problem in problems)]
    return "\n".join(lines)


def plot(path: Path, episode: int, out: Path) -> None:
    """Picture of one episode: a strip of images per camera over time, then state and action curves.

    Raises:
        UserError: no such episode, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib; pip install 'vla-data[inspect]'") from error
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--out: {out} must end in .png, .svg or .pdf")
    source = LeRobotSource(LeRobotConfig(str(path)), horizon=1, episodes=[episode])
    count, fps = len(source), source.spec.action.control_hz
    moments = np.unique(np.linspace(0, count - 1, min(_STRIP, count)).round().astype(int))
    samples = [source[int(i)] for i in moments]
    cameras = [c.name for c in source.spec.observation.cameras]
    vectors = [
        (title, source.rows(vector), groups)
        for title, vector, groups in (
            ("state", "state", source.spec.observation.state),
            ("action", "action", source.spec.action.groups),
        )
    ]
    curves = [(title, groups, rows) for title, rows, groups in vectors if rows is not None]
    figure = Figure(figsize=(12.5, 1.85 * len(cameras) + 2.5 * len(curves) + 0.7), layout="constrained")
    figure.suptitle(f"{path.resolve().name}, episode {episode}: “{samples[0].observation.instruction}”")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.85 * len(cameras), 2.5 * len(curves)])
    above, below = halves
    axes = above.subplots(len(cameras), len(moments), squeeze=False)
    for row, camera in enumerate(cameras):
        for column, (moment, sample) in enumerate(zip(moments, samples, strict=True)):
            axis = axes[row][column]
            axis.imshow(sample.observation.images[camera])
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"{moment / fps:.2f} s", fontsize=9)
            if column == 0:
                axis.set_ylabel(camera, fontsize=9)
    lines = below.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, groups, rows) in zip(lines, curves, strict=True):
        for name, values in zip(dim_names(groups), rows.T, strict=True):
            axis.plot(np.arange(count) / fps, values, label=name, linewidth=1.5)
        for moment in moments:
            axis.axvline(moment / fps, color="0.9", linewidth=0.8, zorder=0)
        axis.set_ylabel(title)
        axis.margins(x=0.01)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    lines[-1].set_xlabel("seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
