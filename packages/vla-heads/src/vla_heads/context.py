"""The backbone's hidden states and a fusion's extra tokens as one context.

Shape legend: B rows, S backbone tokens, K extra tokens, H hidden size, C width of the extra tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vla_core.errors import UserError
from vla_core.interfaces import HeadDims, HeadInputs


def context_projection(dims: HeadDims) -> nn.Linear | None:
    """Linear C -> H for the extra tokens, or None for a head built without them."""
    return nn.Linear(dims.context_dim, dims.hidden_size) if dims.context_dim else None


def extra_context(
    inputs: HeadInputs, projection: nn.Linear | None, n_readers: int, dtype: torch.dtype
) -> list[Tensor]:
    """Projected extra tokens ``[B, K, H]``: none, one for all readers or one for each of ``n_readers``.

    Raises:
        UserError: the context is missing, unexpected, or given for another number of layers.
    """
    context = inputs.context
    if (context is None) != (projection is None):
        state = "missing" if context is None else "unexpected"
        width = projection.in_features if projection is not None else None
        raise UserError(
            f"context: {state} in HeadInputs, the head was built with context_dim {width}; "
            "pair the head with the fusion it was built for"
        )
    if context is None or projection is None:
        return []
    tokens = [context.tokens] if isinstance(context.tokens, Tensor) else list(context.tokens)
    if len(tokens) not in (1, n_readers):
        raise UserError(
            f"context: tokens for {len(tokens)} layers, the head has {n_readers} blocks that read a context; "
            f"give one tensor or {n_readers}"
        )
    return [projection(t.to(dtype)).to(dtype) for t in tokens]


def joint_mask(mask: Tensor, inputs: HeadInputs) -> Tensor:
    """Bool ``[B, 1, 1, S + K]`` for attention: ``mask [B, S]``, then that of the extra tokens.

    A row without any valid token attends to all of them evenly: finite, where softmax would give NaN.
    """
    if inputs.context is not None:
        mask = torch.cat([mask, inputs.context.mask.bool()], dim=1)
    mask = mask | ~mask.any(dim=1, keepdim=True)
    return mask[:, None, None, :]
