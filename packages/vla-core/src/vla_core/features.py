"""What the parts of a model hand to each other.

Shape legend: B rows, V views, N visual tokens, S tokens, H hidden size, C geometry channels,
h, w patch grid, T action steps, A action dims, D state dims, K context tokens, L answer ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from vla_core.answers import Decoder
from vla_core.batch import Movable, TokenFields

Terms: TypeAlias = dict[str, Tensor]
"""Named scalar loss terms; the trainer weights and adds them. :data:`ROWS` is none of them."""
ROWS = "rows"
"""Where ``HeadInputs.rows`` asks for it: float32 ``[B, 2]`` beside the terms, without gradient. Of each row
the sum of the head's own loss over what it counts, and how much that is; their sums' ratio is the term."""


@dataclass
class TextTokens:
    """Embedded prompt: ``embeds [B, S, H]``, ``mask [B, S]``, ``instruction_mask [B, S]``, and its fields."""

    embeds: Tensor
    mask: Tensor
    instruction_mask: Tensor
    fields: TokenFields


@dataclass
class VisualTokens:
    """Image tokens in view order.

    Args:
        tokens: ``[B, N, H]`` with N = V * h * w.
        mask: bool ``[B, N]``; False for missing views.
        grid: (V, h, w) of the tokens.
        deepstack: further features ``[B, N, H]`` that the backbone adds to the image tokens after
            its first, second, ... layer (Qwen3-VL), or None. A fusion that changes the tokens
            returns ``dataclasses.replace(visual, tokens=...)``, so that they survive.
    """

    tokens: Tensor
    mask: Tensor
    grid: tuple[int, int, int]
    deepstack: tuple[Tensor, ...] | None = None


@dataclass
class GeometryFeatures:
    """Per-view geometry, never pooled: pooling is a fusion's choice.

    Args:
        tokens: ``[B, V, h, w, C]``.
        registers: ``[B, R, C]`` global tokens, or None.
        depth: ``[B, V, H, W]`` metres, or None.
        points: ``[B, V, H, W, 3]`` metres in the first camera's frame, or None.
        view_mask: bool ``[B, V]``; False for missing views. The policy writes it; None: all are there.
    """

    tokens: Tensor
    registers: Tensor | None = None
    depth: Tensor | None = None
    points: Tensor | None = None
    view_mask: Tensor | None = None


@dataclass
class Context:
    """Extra tokens for the head: ``tokens [B, K, C]`` (or one tensor per layer), ``mask [B, K]``."""

    tokens: Tensor | Sequence[Tensor]
    mask: Tensor


@dataclass
class Fused:
    """What a fusion returns: visual tokens, optional prefix ``[B, n_prefix, H]``, optional head context."""

    visual: VisualTokens
    prefix: Tensor | None = None
    context: Context | None = None


@dataclass
class VLMOutput:
    """What was requested.

    Args:
        hidden: layer index -> ``[B, S, H]``.
        mask: bool ``[B, S]``; False is padding.
        spans: role name (``image``, ``instruction``, ``query``, ``prefix``, ``answer``) -> bool ``[B, S]``.
        logits: ``[B, L, n_ids]``, the prediction of each label from all tokens before it; None unless asked.
            Over the vocabulary: ``[n, n_tokens]``, of the n answer and closing tokens of all rows.
        labels: long ``[B, L]`` answer ids, or :data:`NO_LABEL`; there when logits are. Over the vocabulary:
            ``[n]`` token ids.
        decoder: at the end of the prompt, where asked.
        position_ids: long ``[P, B, S]``; the backbone's rotary positions, where it tells them.
        kv: decoder layer -> keys and values, each ``[B, n, S, d]`` with n key-value heads; keys after
            their rotary positions. Gradients flow through them. Empty unless requested.
    """

    hidden: Mapping[int, Tensor]
    mask: Tensor
    spans: Mapping[str, Tensor]
    logits: Tensor | None = None
    labels: Tensor | None = None
    decoder: Decoder | None = None
    position_ids: Tensor | None = None
    kv: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def gather(self, span: str, layer: int, count: int) -> Tensor:
        """Hidden states ``[B, count, H]`` at a span that has ``count`` tokens in every row."""
        hidden = self.hidden[layer]
        # topk on the mask keeps shapes static (no host sync); stable order is restored by sorting.
        index = self.spans[span].to(torch.int8).topk(count, dim=1).indices.sort(dim=1).values
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


@dataclass
class HeadInputs:
    """What a head reads: backbone output, optional extra context, normalised state ``[B, D]`` and masks.

    ``action_dims``: bool ``[B, A]``, the dims that the row's embodiment has (None: all). The rest is
    padding: zero in training, and so in what an iterative head sees while it samples.
    ``rows``: have the head's terms hold :data:`ROWS` too. A head that knows of no rows gives its terms alone.
    """

    vlm: VLMOutput
    context: Context | None = None
    state: Tensor | None = None
    state_mask: Tensor | None = None
    embodiment: Tensor | None = None
    action_dims: Tensor | None = None
    rows: bool = False


@dataclass
class Constraint(Movable):
    """What an earlier chunk has settled already (real-time chunking, arXiv 2506.07339).

    Args:
        actions: float32 ``[B, T, A]``: the earlier chunk's actions, normalised, from the present step on.
        weights: float32 ``[B, T]`` in [0, 1]. 1 is a frozen step: executed before the answer arrives, and
            kept. Below 1 the answer is drawn towards the earlier action, at 0 it is free (and
            ``actions`` are not read). A row of zeros has no constraint.
        n_frozen: most frozen steps of a row, as a plain number, so that a limit is checked without
            reading the device; None: not known.
    """

    actions: Tensor
    weights: Tensor
    n_frozen: int | None = None

    @property
    def frozen(self) -> Tensor:
        """Bool ``[B, T]``: the steps to keep."""
        return self.weights >= 1
