"""An episode's pictures, curves and words on one page. Shapes: F frames, H, W pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from vla_core.axes import axes_of
from vla_core.errors import ConfigError
from vla_core.specs import GroupSpec
from vla_core.types import Float, Sample

from vla_data.formats.opening import open_layout
from vla_data.inspect import recorded_names, warnings_of
from vla_data.lerobot import LeRobotConfig, LeRobotSource
from vla_data.view.plot import colour, curves

_HIGH = 240
"""Most pixels of a picture's height; the page shows it smaller."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 1320px; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 0.5rem; }
.about { color: #5a6472; margin: 0.1rem 0 1rem; }
.said { border-left: 4px solid #2f6db3; background: #f2f6fb; padding: 0.5rem 0.9rem; margin: 0.3rem 0;
  font-size: 1.05rem; }
.said span { color: #5a6472; font-size: 0.85rem; margin-left: 0.6rem; }
.note { border-left: 4px solid #d9792b; background: #fdf5ec; padding: 0.4rem 0.9rem; margin: 0.3rem 0; }
.strip { display: grid; gap: 4px; margin-bottom: 0.3rem; }
.strip figure { margin: 0; }
.strip img { width: 100%; display: block; border-radius: 3px; }
.strip figcaption { font-size: 0.78rem; color: #5a6472; text-align: center;
  font-variant-numeric: tabular-nums; }
.camera { font-size: 0.9rem; font-weight: 600; margin: 0.7rem 0 0.2rem; }
.camera span { font-weight: 400; color: #5a6472; }
.panel { display: grid; grid-template-columns: minmax(0, 1fr) 190px; align-items: center; gap: 0.8rem;
  border-top: 1px solid #e6e9ee; padding: 0.5rem 0; }
.panel h3 { font-size: 0.92rem; margin: 0 0 0.2rem; overflow-wrap: anywhere; }
.panel h3 span { font-weight: 400; color: #5a6472; }
.legend { list-style: none; margin: 0; padding: 0; font-size: 0.82rem; columns: 2; }
.legend.few { columns: 1; }
.legend svg { width: 20px; height: 9px; margin-right: 5px; vertical-align: middle; }
svg { width: 100%; height: auto; display: block; }
.legend svg { display: inline-block; }
.grid { stroke: #edf0f4; } .moment { stroke: #dbe1e9; stroke-dasharray: 2 3; } .axis { stroke: #8b94a1; }
.tick { font-size: 12px; fill: #5a6472; } .name { font-size: 12.5px; fill: #1c2330; }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
"""


def episode_page(path: str | Path, episode: int, pictures: int = 8, robot: str | None = None) -> str:
    """HTML of one episode: instructions, what is odd, pictures of each camera, state and action over time.

    Args:
        path: the data set.
        episode: its index.
        pictures: most of each camera, evenly over the episode.
        robot: YAML file that describes the robot.

    Raises:
        UserError: no such episode, or one that training would refuse.
    """
    if pictures < 1:
        raise ConfigError(f"--pictures: must be at least 1, is {pictures}")
    source = LeRobotSource(LeRobotConfig(str(path), robot=robot), horizon=1, episodes=[episode])
    return "\n".join(_page(Path(path), source, episode, pictures)) + "\n"


def _page(path: Path, source: LeRobotSource, episode: int, pictures: int) -> Iterator[str]:
    count, hz = len(source), source.spec.action.control_hz
    moments = np.unique(np.linspace(0, count - 1, min(pictures, count)).round().astype(int))
    seconds = np.arange(count) / hz
    title = f"{escape(path.resolve().name)}, episode {episode}"
    yield f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
    yield f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
    yield (
        f"<p class='about'>robot {escape(source.spec.embodiment)}, {hz:g} Hz, {count} frames, "
        f"{count / hz:.4g} s</p>"
    )
    yield from _instructions(source, hz)
    yield from (f"<p class='note'>{escape(text)}</p>" for text in warnings_of(source))
    yield "<h2>What the cameras show</h2>"
    yield from _strips([source[int(i)] for i in moments], seconds[moments])
    for which, groups in (("state", source.spec.observation.state), ("action", source.spec.action.groups)):
        rows = source.rows(which)
        if rows is not None:
            yield f"<h2>{which.capitalize()}</h2>"
            names = recorded_names(source, open_layout(path), which)
            yield from _groups(rows, groups, names, seconds, list(seconds[moments]))
    yield "</body></html>"


def _instructions(source: LeRobotSource, hz: float) -> Iterator[str]:
    """Each instruction with the seconds it was given in, where there are several."""
    texts = [source.frames.instructions[i] for i in range(len(source))]
    changes = [0, *(i for i in range(1, len(texts)) if texts[i] != texts[i - 1]), len(texts)]
    for start, stop in pairwise(changes):
        when = "" if len(changes) == 2 else f"<span>{start / hz:.2f} to {stop / hz:.2f} s</span>"
        yield f"<p class='said'>{escape(texts[start])}{when}</p>"


def _strips(samples: Sequence[Sample], seconds: NDArray[np.float64]) -> Iterator[str]:
    first = samples[0].observation
    for name, image in first.images.items():
        high, wide = image.shape[:2]
        yield from _strip(
            f"{escape(name)} <span>{wide} x {high}</span>",
            [s.observation.images[name] for s in samples],
            seconds,
        )
    for name in first.depth or {}:
        maps = [(s.observation.depth or {})[name] for s in samples]
        measured = np.concatenate([m[m > 0] for m in maps])
        if not len(measured):
            continue
        near, far = float(measured.min()), float(measured.max())
        yield from _strip(
            f"{escape(name)}, depth <span>{near:.3g} m (bright) to {far:.3g} m (dark), black: "
            "unmeasured</span>",
            [_shades(m, near, far) for m in maps],
            seconds,
        )


def _shades(depth: Float, low: float, high: float) -> NDArray[np.uint8]:
    near = 1.0 - (depth - low) / ((high - low) or 1.0)
    grey = np.where(depth > 0, 40 + 215 * np.clip(near, 0, 1), 0)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def _strip(name: str, images: Sequence[NDArray[np.uint8]], seconds: NDArray[np.float64]) -> Iterator[str]:
    yield f"<div class='camera'>{name}</div>"
    yield f"<div class='strip' style='grid-template-columns: repeat({len(images)}, 1fr)'>"
    for image, second in zip(images, seconds, strict=True):
        yield f"<figure><img alt='at {second:.2f} s' src='{inline(image)}'>"
        yield f"<figcaption>{second:.2f} s</figcaption></figure>"
    yield "</div>"


def inline(image: NDArray[np.uint8], exact: bool = False) -> str:
    """A picture ``[H, W, 3]`` as an address that holds it: PNG where ``exact``, else a JPEG, not high."""
    picture = Pillow.fromarray(image)
    content = io.BytesIO()
    if exact:
        picture.save(content, "PNG")
    else:
        if picture.height > _HIGH:
            picture = picture.resize((round(picture.width * _HIGH / picture.height), _HIGH))
        picture.save(content, "JPEG", quality=88)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _groups(
    rows: Float,
    groups: Sequence[GroupSpec],
    recorded: Sequence[str],
    seconds: NDArray[np.float64],
    marks: Sequence[float],
) -> Iterator[str]:
    """A panel for each group; dims are called as the data set calls them, else by their axis."""
    start = 0
    for group in groups:
        part, said = rows[:, start : start + group.dim], recorded[start : start + group.dim]
        start += group.dim
        axes = [group.name] if group.dim == 1 else [f"[{axis}]" for axis in axes_of(group)]
        names = [name or axis for name, axis in zip(said, axes, strict=True)]
        unit = "unit unknown" if group.unit == "unknown" else group.unit
        axis = f"{group.name} ({unit})"
        axis = axis if len(axis) <= 22 else f"value ({unit})"
        yield f"<div class='panel'><div>{curves(part, seconds, names, axis, marks)}</div>"
        yield f"<div><h3>{escape(group.name)} <span>{escape(_meaning(group))}</span></h3>"
        yield f"<ul class='legend{' few' if group.dim < 9 else ''}'>"
        for dim, name in enumerate(names):
            yield f"<li>{_key(dim)}{escape(name)}</li>"
        yield "</ul></div></div>"


def _meaning(group: GroupSpec) -> str:
    words: list[str] = [group.representation]
    words += [group.rotation] if group.rotation != "none" else []
    words += [group.gripper.replace("_", " ")] if group.gripper != "none" else []
    return ", ".join(words)


def _key(dim: int) -> str:
    stroke, dashes = colour(dim)
    return (
        f"<svg viewBox='0 0 20 9'><line x1='0' x2='20' y1='4.5' y2='4.5' stroke='{stroke}' "
        f"stroke-width='2.5' stroke-dasharray='{dashes}'/></svg>"
    )
