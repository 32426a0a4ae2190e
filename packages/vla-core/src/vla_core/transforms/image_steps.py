"""Transforms of images, with depth and intrinsics kept consistent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_core import images
from vla_core.errors import ConfigError
from vla_core.history import present_name
from vla_core.ranges import Count, Natural, Share, check_ranges
from vla_core.specs import CameraSpec, RobotSpec
from vla_core.transforms.base import Transform
from vla_core.types import Observation


@dataclass(frozen=True)
class ResizeConfig:
    """Size in pixels that every camera gets, and how.

    Args:
        height, width: the size.
        interpolation: the kernel (StarVLA's images are ``bicubic``).
        antialias: false mixes the four nearest pixels alone, as lerobot's pi0 does; bilinear only.
        fit: ``stretch`` to the size, or ``pad``: keep the aspect ratio, in the middle of black (openpi).
    """

    height: Count = 224
    width: Count = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    fit: Literal["stretch", "pad"] = "stretch"

    def __post_init__(self) -> None:
        check_ranges(self, "resize: ")
        if not self.antialias and self.interpolation != "bilinear":
            raise ConfigError(f"resize: antialias: false goes with bilinear, not with {self.interpolation}")


class Resize(Transform):
    """Resize every view; the aspect ratio is kept only with ``fit: pad``."""

    Config = ResizeConfig
    config: ResizeConfig

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        cameras = tuple(
            CameraSpec(c.name, self.config.height, self.config.width) for c in spec.observation.cameras
        )
        return replace(spec, observation=replace(spec.observation, cameras=cameras))

    def _size(self, old: tuple[int, int]) -> tuple[int, int]:
        """Of the picture within the image, without its margins."""
        new = (self.config.height, self.config.width)
        return images.inside(old, new) if self.config.fit == "pad" else new

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        config, whole = self.config, (self.config.height, self.config.width)
        intrinsics = observation.intrinsics
        if intrinsics is not None:
            sizes = {name: image.shape[:2] for name, image in observation.images.items()}
            intrinsics = {
                name: self._intrinsics(k, (sizes[name][0], sizes[name][1]))
                for name, k in intrinsics.items()
                if name in sizes  # a view that is missing has no size to scale from
            }
        depth = observation.depth
        if depth is not None:
            depth = {
                name: images.pad(images.resize_depth(d, *self._size((d.shape[0], d.shape[1]))), *whole)
                for name, d in depth.items()
            }
        resized = {}
        for name, image in observation.images.items():
            size = self._size((image.shape[0], image.shape[1]))
            inner = images.resize(image, *size, config.interpolation, config.antialias)
            resized[name] = images.pad(inner, *whole)
        return replace(observation, images=resized, intrinsics=intrinsics, depth=depth)

    def _intrinsics(self, k: NDArray[np.float32], old: tuple[int, int]) -> NDArray[np.float32]:
        size = self._size(old)
        top, left = images.margins(size, (self.config.height, self.config.width))
        moved = images.resize_intrinsics(k, old, size)
        moved[0, 2] += left
        moved[1, 2] += top
        return moved


@dataclass(frozen=True)
class RandomShiftConfig:
    """Largest shift in pixels along each axis."""

    pixels: Natural = 4

    def __post_init__(self) -> None:
        check_ranges(self, "random_shift: ")


class RandomShift(Transform):
    """Shift each view by a random number of pixels while training (DrQ, Kostrikov et al., 2020).

    What a camera showed at several moments moves alike.
    """

    Config = RandomShiftConfig
    config: RandomShiftConfig
    is_random = True

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        if rng is None:
            return observation
        new, depth, intrinsics = {}, dict(observation.depth or {}), dict(observation.intrinsics or {})
        drawn: dict[str, tuple[int, int]] = {}
        for name, image in observation.images.items():
            camera, most = present_name(name), self.config.pixels
            if camera not in drawn:
                dy, dx = rng.integers(-most, most + 1, size=2).tolist()
                drawn[camera] = dy, dx
            dy, dx = drawn[camera]
            new[name] = images.shift(image, dy, dx)
            if name in depth:
                depth[name] = images.shift(depth[name], dy, dx)
            if name in intrinsics:
                moved = intrinsics[name].copy()
                moved[0, 2] += dx
                moved[1, 2] += dy
                intrinsics[name] = moved
        return replace(
            observation,
            images=new,
            depth=depth if observation.depth is not None else None,
            intrinsics=intrinsics if observation.intrinsics is not None else None,
        )


@dataclass(frozen=True)
class ColorJitterConfig:
    """Largest relative change of brightness and contrast."""

    brightness: Share = 0.2
    contrast: Share = 0.2


class ColorJitter(Transform):
    """Random brightness and contrast while training, one draw for all views."""

    Config = ColorJitterConfig
    config: ColorJitterConfig
    is_random = True

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        if rng is None:
            return observation
        gain = 1 + rng.uniform(-1, 1) * self.config.contrast
        offset = rng.uniform(-1, 1) * self.config.brightness * 255
        # One table of 256 entries instead of float arithmetic on every pixel.
        table = np.clip((np.arange(256) - 127.5) * gain + 127.5 + offset, 0, 255).astype(np.uint8)
        return replace(observation, images={n: table.take(image) for n, image in observation.images.items()})
