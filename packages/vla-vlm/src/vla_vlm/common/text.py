"""The language loop: stops at the highest requested layer, no logits.

B rows, S tokens, N visual tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vla_vlm.common.decoder import CACHE
from vla_vlm.common.kernels import causal_for_kernel, goes_without_mask
from vla_vlm.common.rope import TextRope


@dataclass(frozen=True)
class Deepstack:
    """Visual features for early layers (DeepStack, arXiv 2406.04334).

    Args:
        index: columns ``[B, N]`` of the visual tokens.
        features: ``[B, N, H]``, one for each of the first decoder layers.
    """

    index: Tensor
    features: Sequence[Tensor]

    def add(self, x_BSH: Tensor, layer: int) -> Tensor:
        """The output of decoder layer ``layer`` (from 1) with its features added, if it has some."""
        if layer > len(self.features):
            return x_BSH
        index = self.index[..., None].expand(-1, -1, x_BSH.shape[-1])
        return x_BSH.scatter_add(1, index, self.features[layer - 1].to(x_BSH.dtype))


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raise ValueError for a requested layer that the model doesn't have."""
    unknown = [i for i in layers if not 0 <= i <= n_layers]
    if unknown:
        raise ValueError(
            f"requested layers {unknown} don't exist: the model has 0 (embeddings) to {n_layers}"
        )


def run_layers(
    language_model: Any,
    rope: TextRope,
    embeds_BSH: Tensor,
    valid_BS: Tensor,
    position_ids: Tensor,
    layers: Sequence[int],
    only_tail_invalid: bool = False,
    deepstack: Deepstack | None = None,
    cache: Any = None,
    raw: bool = False,
    segments_BS: Tensor | None = None,
) -> dict[int, Tensor]:
    """Hidden states of the requested ``layers`` (0 embeddings, ``n`` after the final norm).

    Args:
        position_ids: long ``[P, B, S]``, P the axes of ``rope``.
        only_tail_invalid: whether what is not valid comes after all that is, in every row. Causal
            attention alone then hides it, and needs no mask where the kernel can do so.
        deepstack: added after early layers. As in transformers 5, a hidden state is a layer's own
            output, before that; only the last layer's is taken after it.
        cache: keeps keys and values (a :class:`~.decoder.KVCache`).
        raw: states are what the next layer reads, ``n`` before the final norm, as transformers 4 records
            those of models with deepstack.
        segments_BS: long, numbers of texts that share a row without seeing each other; None: one a row.

    Raises:
        ValueError: a layer that the model doesn't have.
    """
    n_layers = len(language_model.layers)
    check_layers(layers, n_layers)
    wanted = set(layers)
    hidden = {0: embeds_BSH} if 0 in wanted else {}
    last = max(wanted, default=0)
    if last == 0:
        return hidden
    implementation = language_model.config._attn_implementation
    mask = None
    alone = only_tail_invalid and segments_BS is None
    if not (alone and goes_without_mask(implementation, embeds_BSH)):
        mask = causal_for_kernel(valid_BS, implementation, embeds_BSH.dtype, segments_BS)
    cos_sin = rope(position_ids, embeds_BSH.dtype)
    x = embeds_BSH
    for i in range(1, last + 1):
        x = own = language_model.layers[i - 1](
            x, attention_mask=mask, position_embeddings=cos_sin, **{CACHE: cache}
        )
        if deepstack is not None and (raw or i < last or i == n_layers):
            x = deepstack.add(x, i)
        if i in wanted and i < n_layers:
            hidden[i] = x if raw else own
    if last == n_layers:
        hidden[last] = x if raw else language_model.norm(x)
    return hidden
