"""Optional abilities of parts, as typed facts of their protocols.

A part states its traits as the attribute ``traits`` (of the class, or of the instance where its config
decides). Everybody else reads them there: no attribute is looked up with a default.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadTraits:
    """What an action head can do besides.

    Args:
        takes_constraint: ``sample`` takes ``constraint``: it keeps the start of an earlier chunk (real-time
            chunking, arXiv 2506.07339).
        longest_delay: most steps of a constraint that may be frozen; None: any number below the horizon.
        noise_dim: dims of a step's noise, where it wants more than the actions have; None: as many.
        steps: denoise steps that it takes where nobody says how many; None: it has none to take.
        per_embodiment: it has weights for each embodiment, picked by its number.
    """

    takes_constraint: bool = False
    longest_delay: int | None = None
    noise_dim: int | None = None
    steps: int | None = None
    per_embodiment: bool = False


@dataclass(frozen=True)
class FusionTraits:
    """How a fusion enters the policy.

    Args:
        train_only: it adds nothing at inference: geometry is not even computed there.
        bypasses_backbone: it returns the visual tokens as they are and no prefix, so that geometry is
            computed beside the whole backbone.
        reads_geometry: False when the cameras alone are enough: then at inference it gets features
            without tokens (h = w = 0) and nothing is encoded.
        cameras: what must be known of at least one view in every batch: a subset of ``{"depth", "intrinsics",
            "extrinsics"}``.
    """

    train_only: bool = False
    bypasses_backbone: bool = False
    reads_geometry: bool = True
    cameras: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GeometryTraits:
    """What a geometry encoder gives.

    Args:
        provides: the subset of ``{"depth", "points"}`` it can compute; a fusion that needs another is
            refused when the policy is built.
        caches_views: it honours ``Cameras.view_keys``, by its ``cache``; False: it has none, or it is
            switched off.
    """

    provides: frozenset[str] = frozenset()
    caches_views: bool = False
