"""The language loop: stops at the highest requested layer, no logits.

B rows, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vla_vlm.qwen2_5_vl.attention import for_kernel
from vla_vlm.qwen2_5_vl.rope import TextRope


def causal_mask(valid_BS: Tensor) -> Tensor:
    """Bool ``[B, 1, S, S]``, True attends: earlier valid keys, and always the token itself.

    A padded row of queries would otherwise attend to nothing, which is 0 / 0 in a softmax; what it
    computes is never read.
    """
    s = valid_BS.shape[1]
    ones = torch.ones(s, s, dtype=torch.bool, device=valid_BS.device)
    eye = torch.eye(s, dtype=torch.bool, device=valid_BS.device)
    return ((ones.tril() & valid_BS[:, None, :]) | eye)[:, None]


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
) -> dict[int, Tensor]:
    """Hidden states of the requested ``layers`` (0 embeddings, ``n`` after the final norm).

    Args:
        position_ids: long ``[3, B, S]``.
        only_tail_invalid: whether what is not valid comes after all that is, in every row. Causal
            attention alone then hides it, and needs no mask where the kernel can do so.

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
        x = language_model.layers[i - 1](x, attention_mask=mask, position_embeddings=cos_sin)
        if i in wanted:
            hidden[i] = language_model.norm(x) if i == n_layers else x
    return hidden
