"""Transforms of images, with depth and intrinsics kept consistent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_core import images
from vla_core.specs import CameraSpec, RobotSpec
from vla_core.transforms.base import Transform
from vla_core.types import Observation


@dataclass(frozen=True)
class ResizeConfig:
    """Size in pixels that every camera gets, and the kernel (StarVLA's images are ``bicubic``)."""

    height: int = 224
    width: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"resize needs positive sizes, got {self.height} x {self.width}")


class Resize(Transform):
    """Resize every view (antialiased); the aspect ratio is not kept."""

    Config = ResizeConfig
    config: ResizeConfig

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        cameras = tuple(
            CameraSpec(c.name, self.config.height, self.config.width) for c in spec.observation.cameras
        )
        return replace(spec, observation=replace(spec.observation, cameras=cameras))

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        h, w = self.config.height, self.config.width
        intrinsics = observation.intrinsics
        if intrinsics is not None:
            sizes = {name: image.shape[:2] for name, image in observation.images.items()}
            intrinsics = {
                name: images.resize_intrinsics(k, (sizes[name][0], sizes[name][1]), (h, w))
                for name, k in intrinsics.items()
                if name in sizes  # a view that is missing has no size to scale from
            }
        depth = observation.depth
        if depth is not None:
            depth = {name: images.resize_depth(d, h, w) for name, d in depth.items()}
        kernel = self.config.interpolation
        resized = {name: images.resize(image, h, w, kernel) for name, image in observation.images.items()}
        return replace(observation, images=resized, intrinsics=intrinsics, depth=depth)


@dataclass(frozen=True)
class RandomShiftConfig:
    """Largest shift in pixels along each axis."""

    pixels: int = 4

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"random_shift needs pixels >= 0, got {self.pixels}")


class RandomShift(Transform):
    """Shift each view by a random number of pixels while training (DrQ, Kostrikov et al., 2020)."""

    Config = RandomShiftConfig
    config: RandomShiftConfig
    is_random = True

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        if rng is None:
            return observation
        new, depth, intrinsics = {}, dict(observation.depth or {}), dict(observation.intrinsics or {})
        for name, image in observation.images.items():
            dy, dx = (int(d) for d in rng.integers(-self.config.pixels, self.config.pixels + 1, size=2))
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

    brightness: float = 0.2
    contrast: float = 0.2


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
        return replace(observation, images={n: table[image] for n, image in observation.images.items()})
