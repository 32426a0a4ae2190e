"""Config of the MapAnything encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.errors import ConfigError, suggest
from vla_core.ranges import Natural, check_ranges

from vla_geometry.cache import check_cache
from vla_geometry.mapanything.sizes import SIZES


@dataclass(frozen=True)
class MapAnythingConfig:
    """YAML node of ``mapanything``.

    Args:
        size: ``giant`` (the current model, ``facebook/map-anything`` and ``facebook/map-anything-apache``),
            ``large`` (the first release, the same names with ``-v1``), or ``tiny`` and ``tiny_v1``: the same
            two for tests and small machines, for which no weights are published.
        weights: what to start from: a hub id, a local directory with ``model.safetensors``, or a
            ``.safetensors`` file; null starts at random (nothing can be learnt from a frozen random encoder).
        revision: commit, tag or branch of the hub id.
        trainable: false freezes the encoder and runs it without gradients.
        dense_heads: build the heads for depth and points (they run only when a fusion asks). Set to false
            when training the encoder with a fusion that needs neither, or they get no gradient.
        bf16: run the two transformers in bfloat16, whatever the policy's dtype; only when frozen. The
            geometric input and the dense heads stay in the policy's dtype, as in the published model.
        compat: ``starvla_llava3d`` gives the features that StarVLA's MapAnythingLlava3D fork trains on:
            images in [0, 1] instead of normalised, no intrinsics, no norm between the stages, neither scale
            token nor class tokens in the multi-view stage; hence no depth or points (``dense_heads: false``)
            and no ``registers``. For an importer of its checkpoints alone: MapAnything was trained otherwise.
        cache_mib: MiB for per-view features of pictures with a key (``cameras.view_keys``); 0: no cache.
    """

    size: str = "giant"
    weights: str | None = None
    revision: str | None = None
    trainable: bool = False
    dense_heads: bool = True
    bf16: bool = False
    compat: Literal["none", "starvla_llava3d"] = "none"
    cache_mib: Natural = 0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"geometry.size: no size '{self.size}'{suggest(self.size, SIZES)}")
        if self.bf16 and self.trainable:
            raise ConfigError(
                "geometry.bf16: true rounds the weights, so it is for a frozen encoder only; set "
                "geometry.trainable to false, or geometry.bf16 to false and train in mixed precision"
            )
        if self.compat not in ("none", "starvla_llava3d"):
            raise ConfigError(f"geometry.compat: '{self.compat}' must be 'none' or 'starvla_llava3d'")
        if self.compat != "none" and self.dense_heads:
            raise ConfigError(
                "geometry.dense_heads: depth and points need the scale token, which compat: starvla_llava3d "
                "leaves out; set geometry.dense_heads to false"
            )
        check_ranges(self, "geometry.")
        check_cache(self.cache_mib, self.trainable)
