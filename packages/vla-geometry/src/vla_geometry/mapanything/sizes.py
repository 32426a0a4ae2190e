"""The sizes MapAnything is published in, and two of the same shape for small machines.

Figures from the configurations of the public repository (facebookresearch/map-anything, model configs
``mapanything`` and ``mapanything_v1``).
"""

from __future__ import annotations

from dataclasses import dataclass

PATCH = 14


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one published model from another.

    Args:
        encoder_dim, encoder_depth, encoder_heads: of the per-view DINOv2.
        encoder_norm: whether DINOv2's final norm is kept.
        swiglu: SwiGLU in both stages instead of a GELU MLP.
        class_token: whether DINOv2's class token joins the patches of its view in the multi-view stage.
        dim, depth, heads: of the multi-view stage; ``dim`` is the width of the features.
        layer_scale: initial LayerScale of the multi-view stage; None has none.
        ray_dims: widths inside the ray encoder.
        grid: side of the patch grid whose position embeddings are stored.
        taps: the two blocks of the multi-view stage that the depth head reads beside its last one.
        head_dims, head_dim: widths of the depth head: of its four stages, and where they are joined.
    """

    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    encoder_norm: bool
    swiglu: bool
    class_token: bool
    dim: int
    depth: int
    heads: int
    layer_scale: float | None
    ray_dims: tuple[int, ...] = (588, 768, 1024)
    grid: int = 37
    taps: tuple[int, int] = (7, 11)
    head_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    head_dim: int = 256


# ray_dims, grid, taps, head_dims, head_dim
_SMALL = ((16, 24, 32), 16, (1, 2), (8, 12, 16, 24), 16)
SIZES = {
    "giant": Architecture(1536, 24, 24, False, True, True, 1536, 16, 24, 1e-5),
    "large": Architecture(1024, 24, 16, True, False, False, 768, 24, 12, None, taps=(11, 17)),
    "tiny": Architecture(64, 3, 2, False, True, True, 64, 4, 2, 0.5, *_SMALL),
    "tiny_v1": Architecture(64, 2, 2, True, False, False, 48, 4, 3, None, *_SMALL),
}
"""``giant`` (1.19 G parameters built here): ``facebook/map-anything``; ``large`` (0.53 G):
``facebook/map-anything-v1``; ``tiny`` and ``tiny_v1``: the same two for tests and small machines, never
published."""
