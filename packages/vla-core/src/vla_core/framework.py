"""The ``framework`` section of a config; the checkpoint stores it resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vla_core.errors import ConfigError
from vla_core.ranges import Count, check_ranges


@dataclass(frozen=True)
class FrameworkConfig:
    """The ``framework`` section.

    Args:
        name: the preset (see ``vla-train --list``), or any name of one's own.
        horizon: T, the number of action steps of a chunk.
        vlm, head: ``{name: <entry point>, **its Config}``.
        geometry, fusion: likewise, or null.
        auxiliary: losses of training alone, likewise, or null.
        use_geometric_branch: true demands geometry and fusion, false leaves them out, null uses
            them if they are given.
        transforms: the pipeline, one ``{name: ..., **its Config}`` a step.
        embodiments: embodiment -> ``{transforms: [...]}``, for a robot whose pipeline is not the common one.
    """

    name: str = "custom"
    horizon: Count = 16
    vlm: dict[str, Any] = field(default_factory=lambda: MISSING)
    head: dict[str, Any] = field(default_factory=lambda: MISSING)
    geometry: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    auxiliary: dict[str, Any] | None = None
    use_geometric_branch: bool | None = None
    transforms: list[dict[str, Any]] = field(default_factory=list)
    embodiments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, "framework.")
        for name, node in self.embodiments.items():
            if not isinstance(node, Mapping) or set(node) != {"transforms"}:
                raise ConfigError(
                    f"framework.embodiments.{name} must be {{transforms: [...]}}, the only thing that can "
                    "differ between robots here"
                )

    def transforms_of(self, embodiment: str) -> tuple[list[dict[str, Any]], str]:
        """The steps of a robot's pipeline, and the key they stand under."""
        own = self.embodiments.get(embodiment)
        if own is None:
            return self.transforms, "framework.transforms"
        return list(own["transforms"]), f"framework.embodiments.{embodiment}.transforms"

    @property
    def has_geometry(self) -> bool:
        """Whether the policy has a geometric branch.

        Raises:
            ConfigError: only one of geometry and fusion, or a branch demanded but not configured.
        """
        given = self.geometry is not None and self.fusion is not None
        if self.use_geometric_branch is False:
            return False
        if self.use_geometric_branch and not given:
            raise ConfigError(
                "framework.use_geometric_branch is true, so framework.geometry and framework.fusion "
                "must both be set, e.g. geometry: {name: tiny}, fusion: {name: aligned_concat}"
            )
        if (self.geometry is None) != (self.fusion is None):
            missing = "fusion" if self.fusion is None else "geometry"
            raise ConfigError(f"framework.{missing} is not set, and the other one is; set both or neither")
        return given
