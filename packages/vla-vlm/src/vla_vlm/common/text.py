"""The language loop: stops at the highest requested layer, no logits.

B rows, S tokens, N visual tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


def causal_mask(valid_BS: Tensor) -> Tensor:
    """Bool ``[B, 1, S, S]``, True attends: earlier valid keys, and always the token itself.

    A padded row of queries would otherwise attend to nothing, which is 0 / 0 in a softmax; what it
    computes is never read.
    """
    s = valid_BS.shape[1]
    ones = torch.ones(s, s, dtype=torch.bool, device=valid_BS.device)
    eye = torch.eye(s, dtype=torch.bool, device=valid_BS.device)
    return ((ones.tril() & valid_BS[:, None, :]) | eye)[:, None]


def for_kernel(mask: Tensor | None, implementation: str, dtype: torch.dtype) -> Tensor | None:
    """A bool mask (True attends) as the attention implementation wants it: eager adds it to the scores."""
    if mask is None or implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _goes_without_mask(implementation: str, x: Tensor) -> bool:
    """Whether attention without a mask is the cheaper way to the same numbers.

    Without one, SDPA takes its flash kernel, which skips half the scores and reads grouped keys and
    values in place; with one it copies them for every query head. A GPU has no such kernel for float32.
    """
    if implementation != "sdpa":
        return False
    half = x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(x.device.type)
    return half or x.device.type == "cpu"


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
) -> dict[int, Tensor]:
    """Hidden states of the requested ``layers`` (0 embeddings, ``n`` after the final norm).

    Args:
        position_ids: long ``[P, B, S]``, P the axes of ``rope``.
        only_tail_invalid: whether what is not valid comes after all that is, in every row. Causal
            attention alone then hides it, and needs no mask where the kernel can do so.
        deepstack: added after early layers. As in transformers, a hidden state is a layer's own
            output, before that; only the last layer's is taken after it.
        cache: keeps keys and values (a :class:`~.decoder.KVCache`).

    Raises:
        ValueError: a layer that the model doesn't have.
    """
    n_layers = len(language_model.layers)
    unknown = [i for i in layers if not 0 <= i <= n_layers]
    if unknown:
        raise ValueError(
            f"requested layers {unknown} don't exist: the model has 0 (embeddings) to {n_layers}"
        )
    wanted = set(layers)
    hidden = {0: embeds_BSH} if 0 in wanted else {}
    last = max(wanted, default=0)
    if last == 0:
        return hidden
    implementation = language_model.config._attn_implementation
    mask = None
    if not (only_tail_invalid and _goes_without_mask(implementation, embeds_BSH)):
        mask = for_kernel(causal_mask(valid_BS), implementation, embeds_BSH.dtype)
    cos_sin = rope(position_ids, embeds_BSH.dtype)
    x = embeds_BSH
    for i in range(1, last + 1):
        x = language_model.layers[i - 1](
            x, attention_mask=mask, position_embeddings=cos_sin, past_key_values=cache
        )
        if i in wanted and i < n_layers:
            hidden[i] = x
        if deepstack is not None and (i < last or i == n_layers):
            x = deepstack.add(x, i)
    if last == n_layers:
        hidden[last] = language_model.norm(x)
    return hidden
