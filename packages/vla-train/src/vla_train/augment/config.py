"""The ``datasets.augmentation`` section of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vla_core.ranges import NonNegative, Range, Share, check_ranges


@dataclass(frozen=True)
class AugmentationConfig:
    """How far training batches are changed at random, on their device; everything is off by default.

    Every view of every row has a draw of its own, shared by the frames of its history and by the observation
    at the chunk's end. Validation, serving and rollouts see what was recorded.

    Args:
        crop_scale: smallest share of a picture's area that a crop keeps before it is enlarged again; 1: no
            crop.
        crop_ratio: most by which a crop's aspect ratio is stretched or squeezed, as a factor; 1: it is kept.
        rotation: largest angle in degrees, either way, about the optical axis (the picture's centre where
            intrinsics are unknown).
        brightness, contrast, saturation: largest relative change.
        hue: largest turn of the colours about the grey axis, in whole turns.
        state_dropout: share of the rows whose whole state is hidden, as if the robot had none.
        state_noise: standard deviation of Gaussian noise on the normalised state.
    """

    crop_scale: Annotated[float, Range(low=0.05, high=1)] = 1.0
    crop_ratio: Annotated[float, Range(low=1, high=2)] = 1.0
    rotation: Annotated[float, Range(low=0, high=45)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Range(low=0, high=0.5)] = 0.0
    state_dropout: Share = 0.0
    state_noise: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "datasets.augmentation.")

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return self.crop_scale < 1 or self.crop_ratio > 1 or self.rotation > 0

    @property
    def recolours(self) -> bool:
        """Whether colours change."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def changes_state(self) -> bool:
        """Whether states change."""
        return max(self.state_dropout, self.state_noise) > 0

    @property
    def on(self) -> bool:
        """Whether anything changes."""
        return self.moves or self.recolours or self.changes_state
