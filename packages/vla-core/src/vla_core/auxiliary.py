"""The interface of auxiliary losses: terms that shape the backbone while training, and nothing at inference.

Shape legend: B rows, V views, h, w patch grid of a view, N = V h w image tokens, S tokens, H hidden size,
A action dims, T action steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from vla_core.batch import Batch
from vla_core.interfaces import GeometryFeatures, Terms, VLMOutput, VLMRequest

MeanOver: TypeAlias = Literal["actions", "answers", "tokens", "views", "futures", "rows", "conversations"]
"""What a loss term is a mean over: valid action entries, answer ids, answer and closing tokens, tokens of
views that are there, rows whose chunk's end is known, the rows of the batch, or the assistants' tokens in
conversations."""


@dataclass(frozen=True)
class AuxiliaryDims:
    """Runtime facts an auxiliary is built from; never config.

    Args:
        hidden_size, n_layers: of the backbone.
        top_layer: the highest layer whose hidden states the head reads while training.
        grid: the backbone's tokens per view (h, w).
        n_views: V.
        action_dim, horizon: A and T.
        geometry_dim: channels of the geometry encoder, or None without one.
    """

    hidden_size: int
    n_layers: int
    top_layer: int
    grid: tuple[int, int]
    n_views: int
    action_dim: int
    horizon: int
    geometry_dim: int | None = None


@dataclass
class AuxiliaryInputs:
    """What an auxiliary reads: the backbone's output for the batch, and what it is compared with.

    Args:
        vlm: with the layers of the auxiliary's ``request``.
        batch: with targets, recorded depth, ``future_mask``.
        geometry: the encoder's features, or None without one.
        future: the backbone's output for ``batch.future``, without gradient; None unless in ``needs``.
    """

    vlm: VLMOutput
    batch: Batch
    geometry: GeometryFeatures | None = None
    future: VLMOutput | None = None


@runtime_checkable
class Auxiliary(Protocol):
    """Auxiliary losses (an ``nn.Module``). Entry points ``vla.auxiliaries``.

    ``needs`` is a subset of ``{"future", "depth"}``: batches must then carry the observation at the chunk's
    end, or recorded depth. ``min_rows`` is the smallest batch its terms mean something for. ``mean_over``
    says of each term what it is a mean over, so that micro-batches are weighted by their share of it.
    """

    Config: ClassVar[type]
    needs: frozenset[str]
    request: VLMRequest
    min_rows: int
    mean_over: Mapping[str, MeanOver]

    @classmethod
    def build(cls, config: Any, dims: AuxiliaryDims) -> Auxiliary | None:
        """The module, or None if ``config`` switches every term off."""
        ...

    def weights(self, step: int) -> Mapping[str, float]:
        """Term -> weight at an optimisation step (the first is 1). All zero: the terms are not computed."""
        ...

    def __call__(self, inputs: AuxiliaryInputs | None) -> Terms:
        """Unweighted terms, one for each of :meth:`weights`.

        With None (while all weights are zero) a single term ``idle``: exactly 0, with a zero gradient for
        every parameter, because engines that split gradients expect one for each in every step.
        """
        ...


def image_tokens(
    out: VLMOutput, layer: int, view_mask: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Hidden states at their places in the image, whether or not the span holds missing views' tokens.

    Args:
        out: a backbone's output that has ``layer``.
        layer: which hidden states.
        view_mask: bool ``[B, V]``.
        grid: (h, w) of a view.

    Returns:
        ``[B, N, H]`` in view order with zeros in missing views, and bool ``[B, N]`` of the others.
    """
    valid = view_mask.repeat_interleave(grid[0] * grid[1], dim=1)
    # Sorted to the front on both sides, the i-th image token meets the i-th valid place. No shape
    # depends on the data.
    places = _front(valid)[..., None]
    columns = _front(out.spans["image"] & out.mask)[:, : valid.shape[1], None]
    hidden = out.hidden[layer]
    tokens = hidden.gather(1, columns.expand(-1, -1, hidden.shape[-1]))
    placed = torch.zeros_like(tokens).scatter(1, places.expand_as(tokens), tokens)
    return placed.where(valid[..., None], 0.0), valid


def _front(mask_BN: Tensor) -> Tensor:
    """Indices ``[B, N]``: the True ones in order, then the others."""
    return (~mask_BN).to(torch.uint8).argsort(dim=1, stable=True)
