"""What every fusion has: protocol defaults, shape checks, and which geometry counts.

Shape legend: B rows, V views, N = V h w vision tokens, h', w' geometry grid, G = V h' w' geometry tokens,
C geometry channels, H hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import (
    GeometryFeatures,
    PromptSpec,
    Terms,
    TextTokens,
    VisualTokens,
    VLMOutput,
    VLMRequest,
)
from vla_core.traits import FusionTraits


class GeometryFusion(nn.Module):
    """Defaults of the ``Fusion`` protocol; a subclass sets what differs and has ``build`` and ``forward``."""

    needs: frozenset[str] = frozenset()
    request: VLMRequest = VLMRequest()
    prompt: PromptSpec = PromptSpec()
    traits: FusionTraits = FusionTraits()
    context_dim: int | None = None

    def __init__(self, geometry_dim: int) -> None:
        super().__init__()
        self.geometry_dim = geometry_dim

    def loss(self, out: VLMOutput, geometry: GeometryFeatures) -> Terms:
        """No terms of its own."""
        return {}

    def check(self, visual: VisualTokens, geometry: GeometryFeatures) -> None:
        """Raise :class:`UserError` naming the field that does not fit."""
        check_visual(visual)
        shape, rows, v = list(geometry.tokens.shape), visual.tokens.shape[0], visual.grid[0]
        if len(shape) != 5:
            raise UserError(f"geometry.tokens: shape {shape} must be [B, V, h, w, C] (not pooled)")
        if shape[0] != rows:
            raise UserError(f"geometry.tokens: {shape[0]} rows, visual.tokens has {rows}")
        if shape[1] != v:
            raise UserError(
                f"geometry.tokens: {shape[1]} views, visual.grid has {v}; give both the same images"
            )
        if shape[4] != self.geometry_dim:
            raise UserError(
                f"geometry.tokens: {shape[4]} channels, the fusion was built with geometry_dim "
                f"{self.geometry_dim}; build it from the encoder's dim"
            )


def check_visual(visual: VisualTokens) -> None:
    """Raise :class:`UserError` unless there is one vision token per grid cell."""
    n, (v, h, w) = visual.tokens.shape[1], visual.grid
    if n != v * h * w:
        raise UserError(
            f"visual.tokens: {n} tokens, but visual.grid {visual.grid} has {v * h * w}; "
            "the backbone must give one token per grid cell"
        )


def check_text(text: TextTokens | None, hidden_size: int) -> TextTokens:
    """The text, or :class:`UserError` if there is none or its width is another."""
    if text is None:
        raise UserError("text: missing; this fusion reads the instruction, pass what embed_text gave")
    if text.embeds.shape[-1] != hidden_size:
        raise UserError(
            f"text.embeds: {text.embeds.shape[-1]} channels, the fusion was built with hidden_size "
            f"{hidden_size}"
        )
    return text


def resolve_heads(width: int, n_heads: int | None) -> int:
    """Attention heads for a width: null is ``width / 64``, at least 1.

    Raises:
        ConfigError: a width that cannot carry positions, or that the heads do not divide.
    """
    heads = max(1, width // 64) if n_heads is None else n_heads
    if width < 8 or heads < 1 or width % heads:
        raise ConfigError(f"n_heads: width {width} must be at least 8 and divisible by n_heads {heads}")
    return heads


def valid_views(visual: VisualTokens) -> Tensor:
    """Bool ``[B, V]``: views with a valid vision token."""
    return visual.mask.view(visual.mask.shape[0], visual.grid[0], -1).any(dim=-1)


def known_tokens(geometry: GeometryFeatures, visual: VisualTokens) -> tuple[Tensor, Tensor]:
    """Geometry tokens ``[B, V, h', w', C]`` with zeros in missing views, and bool ``[B, G]`` of the others.

    Zeros, because masking in an attention does not stop a NaN: whatever a missing view's features hold
    must not get through.
    """
    valid = valid_views(visual)
    tokens = geometry.tokens.where(valid[:, :, None, None, None], 0.0)
    per_view = tokens.shape[2] * tokens.shape[3]
    return tokens, valid[:, :, None].expand(-1, -1, per_view).flatten(1)
