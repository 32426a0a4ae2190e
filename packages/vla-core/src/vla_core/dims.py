"""Runtime facts that parts are built from: sizes of other parts, never config.

Shape legend: H hidden size, C geometry or context channels, h, w patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVDims:
    """The attention that a backbone's keys and values belong to.

    Args:
        n_heads: query heads; a multiple of ``n_kv_heads``.
        n_kv_heads: key and value heads.
        head_dim: width of a head.
        rope_theta: base of the rotary positions in the keys.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float


@dataclass(frozen=True)
class VLMDims:
    """Sizes other parts are built from: ``hidden_size``, ``n_layers``, tokens per view grid (h, w).

    ``decoder`` tells whether the backbone can speak: it is an :class:`~vla_core.interfaces.AnsweringModel`.
    ``kv`` is None for a backbone that does not serve ``VLMRequest.kv``.
    """

    hidden_size: int
    n_layers: int
    grid: tuple[int, int]
    decoder: bool = False
    kv: KVDims | None = None


@dataclass(frozen=True)
class HeadDims:
    """Runtime facts a head is built from; never config.

    ``context_dim`` is C of the fusion's head context, or None; ``kv`` the backbone's ``VLMDims.kv``.
    """

    hidden_size: int
    n_layers: int
    action_dim: int
    horizon: int
    state_dim: int = 0
    n_embodiments: int = 1
    context_dim: int | None = None
    kv: KVDims | None = None


@dataclass(frozen=True)
class FusionDims:
    """Runtime facts a fusion is built from; ``grid`` (h, w) is the backbone's tokens per view."""

    hidden_size: int
    geometry_dim: int
    n_layers: int
    grid: tuple[int, int] | None = None
