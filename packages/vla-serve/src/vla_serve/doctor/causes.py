"""The usual causes of a success rate of 0 %, each as what would undo it.

Shapes: H, W image size; N frames; T steps; A action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray
from vla_core.images import inside, pad, resize
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.stats import VectorStats
from vla_core.types import Observation

from vla_serve.doctor.frames import Frames

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class InputCause:
    """A mistake on the way in: ``undo`` makes of a recorded observation what the policy may know."""

    name: str
    undo: Callable[[Observation], Observation]
    of_images: bool = False


@dataclass(frozen=True)
class OutputCause:
    """A mistake on the way out: ``undo`` makes of answers ``[N, T, A]`` what the recording may mean.

    ``groups``: of the actions, that it is about.
    """

    name: str
    undo: Callable[[Array], Array]
    groups: tuple[str, ...]


ASPECTS = {"4:3": (3, 4), "16:9": (9, 16)}


def input_causes(contract: RobotSpec, frames: Frames) -> Iterator[InputCause]:
    """What may be wrong with images and state."""
    yield from _swapped(contract)
    names = [camera.name for camera in contract.observation.cameras]
    pictures: dict[str, Callable[[Picture], Picture]] = {
        "RGB/BGR": lambda image: image[..., ::-1],
        "flipped top to bottom": lambda image: image[::-1],
        "flipped left to right": lambda image: image[:, ::-1],
        "turned by 180 degrees": lambda image: image[::-1, ::-1],
    }
    for aspect, (height, width) in ASPECTS.items():
        pictures[f"wrong resize: letterboxed from {aspect}, where the policy knows it stretched"] = _unboxed(
            height, width
        )
        pictures[f"wrong resize: stretched from {aspect}, where the policy knows it letterboxed"] = _boxed(
            height, width
        )
    for name, change in pictures.items():
        yield InputCause(f"images: {name}", _on_images(names, change), True)
        if len(names) > 1:
            for camera in names:
                yield InputCause(
                    f"images: {name} (camera {camera} alone)", _on_images([camera], change), True
                )
    yield from _states(contract, frames)


def _swapped(contract: RobotSpec) -> Iterator[InputCause]:
    cameras = contract.observation.cameras
    names = [camera.name for camera in cameras]
    sizes = {camera.name: (camera.height, camera.width) for camera in cameras}
    orders: Iterator[tuple[str, ...]]
    if len(names) <= 3:
        orders = (order for order in permutations(names) if list(order) != names)
    else:
        orders = (tuple({a: b, b: a}.get(name, name) for name in names) for a, b in combinations(names, 2))
    for order in orders:
        moved = {name: other for name, other in zip(names, order, strict=True) if name != other}
        if all(sizes[name] == sizes[other] for name, other in moved.items()):
            words = ", ".join(f"{name} shows what belongs to {other}" for other, name in moved.items())
            yield InputCause(f"cameras swapped: {words}", _reordered(moved), True)


def _reordered(moved: Mapping[str, str]) -> Callable[[Observation], Observation]:
    def undo(observation: Observation) -> Observation:
        images = dict(observation.images)
        return replace(observation, images={**images, **{name: images[o] for name, o in moved.items()}})

    return undo


def _on_images(
    names: list[str], change: Callable[[Picture], Picture]
) -> Callable[[Observation], Observation]:
    def undo(observation: Observation) -> Observation:
        changed = {name: np.ascontiguousarray(change(observation.images[name])) for name in names}
        return replace(observation, images={**observation.images, **changed})

    return undo


def _unboxed(height: int, width: int) -> Callable[[Picture], Picture]:
    def change(image: Picture) -> Picture:
        size = image.shape[0], image.shape[1]
        rows, columns = inside((height * 1000, width * 1000), size)
        top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
        return resize(np.ascontiguousarray(image[top : top + rows, left : left + columns]), *size)

    return change


def _boxed(height: int, width: int) -> Callable[[Picture], Picture]:
    def change(image: Picture) -> Picture:
        size = image.shape[0], image.shape[1]
        return pad(resize(image, *inside((height * 1000, width * 1000), size)), *size)

    return change


def _states(contract: RobotSpec, frames: Frames) -> Iterator[InputCause]:
    groups = contract.observation.state
    if not groups:
        return
    if "state" in frames.spec.statistics.vectors:
        for name, (centre, span) in _normalisers(frames.spec.statistics["state"]).items():
            yield InputCause(
                f"state: normalised ({name}) where it must be in real units", _on_state(span, centre)
            )
            yield InputCause(
                f"state: un-normalised where the policy knows it normalised ({name})",
                _on_state(1 / span, -centre / span),
            )
    dim = contract.observation.state_dim
    for group in groups:
        part = contract.observation.state_slices()[group.name]
        for words, units, factor in (
            ("degrees where it must be radians", ("rad",), np.pi / 180),
            ("radians where it must be degrees", ("deg", "degree", "degrees"), 180 / np.pi),
            ("millimetres where it must be metres", ("m",), 1e-3),
        ):
            if group.unit in units:
                scale = np.ones(dim)
                scale[part] = factor
                yield InputCause(f"state: {group.name} in {words}", _on_state(scale, np.zeros(dim)))
        states = frames.states
        if states is not None and _is_gripper(group):
            scale, shift = np.ones(dim), np.zeros(dim)
            scale[part], shift[part] = -1, states[:, part].min(0) + states[:, part].max(0)
            yield InputCause(f"state: polarity of {group.name}", _on_state(scale, shift))


def _normalisers(stats: VectorStats) -> dict[str, tuple[Array, Array]]:
    """Centre and span of the usual normalisations."""

    def spread(low: Array, high: Array) -> tuple[Array, Array]:
        return (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)

    return {
        "mean and standard deviation": (stats.mean, np.where(stats.std > 0, stats.std, 1.0)),
        "min and max": spread(stats.min, stats.max),
        "1st and 99th percentile": spread(stats.q01, stats.q99),
    }


def _on_state(scale: Array, shift: Array) -> Callable[[Observation], Observation]:
    def undo(observation: Observation) -> Observation:
        assert observation.state is not None
        state = (np.asarray(observation.state, np.float64) * scale + shift).astype(np.float32)
        return replace(observation, state=state)

    return undo


def _is_gripper(group: GroupSpec) -> bool:
    return group.gripper != "none" or "gripper" in group.name.lower()


def output_causes(contract: RobotSpec, frames: Frames) -> Iterator[OutputCause]:
    """What may be wrong with the answers, or with how the recording is understood."""
    slices = contract.action.slices()
    for group in contract.action.groups:
        if _is_gripper(group):
            recorded = frames.actions[..., slices[group.name]][frames.mask[..., slices[group.name]]]
            yield OutputCause(
                f"actions: polarity of {group.name}",
                _mirrored(slices[group.name], recorded.min() + recorded.max()),
                (group.name,),
            )
    yield from _offsets(contract, frames)


def _mirrored(part: slice, total: float) -> Callable[[Array], Array]:
    def undo(answers: Array) -> Array:
        out = answers.copy()
        out[..., part] = total - out[..., part]
        return out

    return undo


def _offsets(contract: RobotSpec, frames: Frames) -> Iterator[OutputCause]:
    """Delta against absolute: for groups that state and actions share, and are no rotations."""
    places, state = contract.action.slices(), contract.observation.state_slices()
    shared = [
        group
        for group in contract.action.groups
        if group.rotation == "none" and not _is_gripper(group)
        if any(g.name == group.name and g.dim == group.dim for g in contract.observation.state)
    ]
    named = tuple(group.name for group in shared)
    states = frames.states
    changes: dict[str, Callable[[Array, Array], Array]] = {}
    if shared and states is not None:
        changes = {
            "answers are offsets from the state, the recording absolute": lambda a, s: a + s,
            "answers are absolute, the recording offsets from the state": lambda a, s: a - s,
            "answers are deltas of each step, the recording absolute": lambda a, s: a.cumsum(1) + s,
            "answers are absolute, the recording deltas of each step": lambda a, s: np.diff(
                np.concatenate([s, a], 1), axis=1
            ),
            "answers are deltas of each step, the recording offsets from the state": lambda a, s: a.cumsum(1),
            "answers are offsets from the state, the recording deltas of each step": lambda a, s: np.diff(
                a, axis=1, prepend=0
            ),
        }
    for words, change in changes.items():

        def undo(answers: Array, change: Callable[[Array, Array], Array] = change) -> Array:
            assert states is not None
            out = answers.copy()
            for name in named:
                out[..., places[name]] = change(answers[..., places[name]], states[:, None, state[name]])
            return out

        yield OutputCause(f"actions: delta against absolute: {words}", undo, named)
