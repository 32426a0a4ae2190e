"""How far answers are from what was recorded. Shapes: N frames, T steps, A action dims, G groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vla_core.rotations import to_matrix
from vla_core.specs import ActionSpec, GroupSpec

from vla_serve.doctor.frames import Frames

Array = NDArray[np.float64]

_ANGLES = ("euler_xyz", "axis_angle")
"""Parametrisations in which every vector is a rotation."""
STILL = 1e-4
"""Of its size: a group that is never further from its mean does not move."""
LEAST = 1e-6
"""Whatever its unit, a smaller number is none."""


@dataclass(frozen=True)
class Yardstick:
    """Measures answers against recorded actions.

    An error is divided by that of an answer that knows nothing and always says the recording's mean (a
    rotation: its median): below 1 something of the recording is followed, and 0 is all of it. A group that
    never moves in the recording is known by that answer; there the error is divided by the numbers' size in
    these frames; where that is 0, by their size in all of the data; where that is too, by one unit.
    """

    spec: ActionSpec
    frames: Frames

    def errors(self, answers: Array) -> list[Array]:
        """Absolute errors ``[N, T]`` of each group in its unit (rotations: rad); NaN past the end."""
        return [
            _error(group, answers[..., part], self.frames.actions[..., part], self.frames.mask[..., part])
            for group, part in self._parts()
        ]

    def scores(self, answers: Array, rows: NDArray[np.intp] | slice = slice(None)) -> Array:
        """Errors ``[G]`` relative to knowing nothing, over some of the frames."""
        naive = self.errors(self._mean())
        known = zip(self.errors(answers), naive, self.still(), self._sizes(), strict=True)
        return np.array(
            [
                np.nanmean(error[rows]) / (size if still else _of_guess(guess, rows))
                for error, guess, still, size in known
            ]
        )

    def still(self) -> NDArray[np.bool_]:
        """``[G]``: groups that never move in the recording."""
        guesses = zip(self.errors(self._mean()), self._sizes(), strict=True)
        return np.array([np.nanmax(guess) <= max(STILL * size, LEAST) for guess, size in guesses])

    def _sizes(self) -> list[float]:
        """``[G]``: the largest number of each in the frames, else in the data, else 1."""
        seen_A = np.where(self.frames.mask, np.abs(self.frames.actions), 0.0).max((0, 1))
        known, data_A = self.frames.spec.statistics.vectors.get("action"), np.zeros_like(seen_A)
        if known is not None and known.dim == len(data_A):
            data_A = np.nan_to_num(np.maximum(np.abs(known.min), np.abs(known.max)), posinf=0.0)
        every = [[float(size_A[part].max()) for size_A in (seen_A, data_A)] for _, part in self._parts()]
        return [next((size for size in sizes if size > LEAST), 1.0) for sizes in every]

    def _parts(self) -> list[tuple[GroupSpec, slice]]:
        slices = self.spec.slices()
        return [(group, slices[group.name]) for group in self.spec.groups]

    def _mean(self) -> Array:
        recorded = np.where(self.frames.mask, self.frames.actions, np.nan)
        mean = np.nanmean(recorded, axis=(0, 1))
        median = np.nanmedian(recorded, axis=(0, 1))
        for group, part in self._parts():
            if group.rotation != "none":
                mean[part] = median[part]
        return np.broadcast_to(mean, self.frames.actions.shape)


def _of_guess(guess: Array, rows: NDArray[np.intp] | slice) -> float:
    """What hardly moves in these rows: an error there counts, but not without end."""
    return max(float(np.nanmean(guess[rows])), LEAST, 0.01 * float(np.nanmax(guess)))


def _error(group: GroupSpec, answers: Array, recorded: Array, mask: NDArray[np.bool_]) -> Array:
    if group.rotation in _ANGLES and group.dim == 3:
        turned = np.einsum(
            "...ji,...jk->...ik", to_matrix(answers, group.rotation), to_matrix(recorded, group.rotation)
        )
        cosine = (np.einsum("...ii", turned) - 1) / 2
        error: Array = np.arccos(np.clip(cosine, -1, 1))
    else:
        error = np.abs(answers - recorded).mean(-1)
    return np.where(mask.any(-1), error, np.nan)
