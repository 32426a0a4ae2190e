"""What a robot writes to again, copied into memory that is kept: fresh memory takes as long as the copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.types import Observation

from vla_serve.clients import arguments
from vla_serve.engine.errors import FieldError
from vla_serve.messages.codec import as_array


class OwnArrays:
    """Copies of observations, one at a time: the pictures of each stand where those before it stood."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], NDArray[Any]] = {}

    def copy(self, observation: Observation) -> Observation:
        """A copy whose pictures and depth are right until the next one is made, and all else for good.

        Raises:
            PolicyClientError: what is no observation, by name. Of arrays nothing is compared.
        """
        arguments.observation(observation)
        return replace(
            observation,
            images=self._pictures("images", observation.images) or {},
            state=_own(observation.state),
            depth=self._pictures("depth", observation.depth),
            intrinsics=_all_own(observation.intrinsics),
            extrinsics=_all_own(observation.extrinsics),
        )

    def _pictures(self, kind: str, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if given is None else {name: self._picture((kind, name), v) for name, v in given.items()}

    def _picture(self, key: tuple[str, str], value: Any) -> Any:
        array = _array(value)
        if array is None:
            return value
        kept = self._kept.get(key)
        if kept is None or kept.shape != array.shape or kept.dtype != array.dtype:
            self._kept[key] = kept = np.empty(array.shape, array.dtype)
        np.copyto(kept, array)
        return kept


def without_pictures(observation: Observation) -> Observation:
    """What is right for good of a copy."""
    return replace(observation, images={}, depth=None)


def _array(value: Any) -> NDArray[Any] | None:
    """None for what is no array: whoever sends it says what is wrong with it."""
    if value is None or isinstance(value, np.ndarray):
        return value
    try:
        return as_array(value, "")
    except FieldError:
        return None


def _own(value: Any) -> Any:
    array = _array(value)
    return value if array is None else array.copy()


def _all_own(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else {name: _own(value) for name, value in given.items()}
