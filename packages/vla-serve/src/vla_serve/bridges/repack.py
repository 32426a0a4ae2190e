"""From another system's keys to a robot's cameras and state groups, checked against the contract at start.

Shapes: S state dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.ranges import Count
from vla_core.specs import ObservationSpec
from vla_core.types import Observation

from vla_serve.bridges.arrays import EncodedImage
from vla_serve.messages.codec import as_array
from vla_serve.repack_file import read_config


@dataclass(frozen=True)
class OpenpiConfig:
    """The keys of an openpi client's flat observation.

    Args:
        images: camera -> their key, for example ``{base: observation/image}``.
        state: their key -> the state groups in its vector, in its order.
        prompt: the key of the instruction.
    """

    images: dict[str, str]
    state: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prompt: str = "prompt"


@dataclass(frozen=True)
class StarvlaConfig:
    """The examples of a StarVLA client.

    Args:
        images: cameras in the order of an example's list; None: the contract's.
        state: state groups in the order of its vector; None: the contract's.
        unnorm_keys: their name of the statistics -> embodiment of the policy; None: each by its own.
        num_ddim_steps: ``request``: a request's number is that of its denoise steps; ``policy``: it is not
            looked at, as StarVLA's own flow-matching heads do, and the policy takes its own.
    """

    images: tuple[str, ...] | None = None
    state: tuple[str, ...] | None = None
    unnorm_keys: dict[str, str] | None = None
    num_ddim_steps: Literal["request", "policy"] = "request"


@dataclass(frozen=True)
class VlaEvalConfig:
    """The observations of a vla-eval benchmark.

    Args:
        images: camera -> their camera.
        state: state groups in the order of ``states`` (or ``state``); None: the contract's.
        observation_params: told to the benchmark, for example ``{send_state: true}``.
        execute_steps: actions of a chunk that are given out; None: half of it, rounded up.
    """

    images: dict[str, str]
    state: tuple[str, ...] | None = None
    observation_params: dict[str, Any] = field(default_factory=dict)
    execute_steps: Count | None = None


@dataclass(frozen=True)
class RepackConfig:
    """A repack file: a section for each protocol that is spoken."""

    openpi: OpenpiConfig | None = None
    starvla: StarvlaConfig = field(default_factory=StarvlaConfig)
    vla_eval: VlaEvalConfig | None = None


def read(path: Path | None) -> RepackConfig:
    """The file's content; :class:`ConfigError` names what is wrong in it."""
    return read_config(RepackConfig, path, "sections openpi, starvla or vla_eval")


@dataclass(frozen=True)
class Repack:
    """A mapping that fits a contract.

    Args:
        spec: of the contract.
        images: camera -> their key.
        state: their key -> the state groups in its vector.
        where: how errors name the mapping.

    Raises:
        ConfigError: a camera or group that is unknown, missing or named twice.
    """

    spec: ObservationSpec
    images: Mapping[str, str]
    state: Mapping[str, Sequence[str]]
    where: str

    def __post_init__(self) -> None:
        _cover(f"{self.where}.images", list(self.images), [camera.name for camera in self.spec.cameras])
        named = [group for groups in self.state.values() for group in groups]
        _cover(f"{self.where}.state", named, [group.name for group in self.spec.state])

    def observation(
        self, images: Mapping[str, Any], values: Mapping[str, Any], instruction: Any
    ) -> Observation:
        """Theirs as ours.

        Raises:
            UserError: what is missing or does not fit, by their key.
        """
        if not isinstance(instruction, str):
            raise UserError(f"the instruction is a {type(instruction).__name__}, expected a text")
        pictures = {}
        for camera in self.spec.cameras:
            key = self.images[camera.name]
            pictures[camera.name] = _picture(_get(images, key), camera.height, camera.width, key)
        return Observation(pictures, instruction, self._vector(values))

    def _vector(self, values: Mapping[str, Any]) -> NDArray[np.float32] | None:
        if not self.spec.state:
            return None
        out_S = np.zeros(self.spec.state_dim)
        slices = self.spec.state_slices()
        for key, groups in self.state.items():
            given = _numbers(_get(values, key), key)
            sizes = [slices[group].stop - slices[group].start for group in groups]
            if given.size != sum(sizes):
                parts = ", ".join(f"{group} ({size})" for group, size in zip(groups, sizes, strict=True))
                raise UserError(f"'{key}': {given.size} numbers, expected {sum(sizes)}: {parts}")
            start = 0
            for group, size in zip(groups, sizes, strict=True):
                out_S[slices[group]] = given[start : start + size]
                start += size
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite when it is sent
            return out_S.astype(np.float32)


def _cover(where: str, named: Sequence[str], needed: Sequence[str]) -> None:
    for name in named:
        if name not in needed:
            raise ConfigError(f"{where}: '{name}' is not in the contract{suggest(name, needed)}")
    for name in needed:
        if named.count(name) != 1:
            problem = "is missing" if name not in named else "is named twice"
            raise ConfigError(f"{where}: '{name}' of the contract {problem}; it has {', '.join(needed)}")


def _get(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise UserError(f"'{key}' is missing{suggest(key, [str(k)[:64] for k in values])}")
    return values[key]


def _picture(value: Any, height: int, width: int, key: str) -> NDArray[np.uint8]:
    if isinstance(value, EncodedImage):
        return value.decode(height, width, f"'{key}'")
    image: NDArray[Any] = (
        as_array(value, f"'{key}'") if isinstance(value, (np.ndarray, list)) else np.zeros(0)
    )
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise UserError(
            f"'{key}': expected uint8 RGB [{height}, {width}, 3], got {image.dtype} {list(image.shape)}; "
            "send what the camera gives: the server resizes and normalises"
        )
    return image


def _numbers(value: Any, key: str) -> NDArray[np.float64]:
    """A vector; also a number, or a row of a batch of one."""
    if isinstance(value, EncodedImage):
        raise UserError(f"'{key}': a picture, expected numbers")
    array = as_array(value, f"'{key}'")
    if array.dtype.kind not in "biuf" or sum(size != 1 for size in array.shape) > 1:
        raise UserError(f"'{key}': {array.dtype} {list(array.shape)}, expected a vector of numbers")
    return array.astype(np.float64).reshape(-1)
