"""Reserved tokens: found by role, overwritten in place, counted without asking the device.

B rows, S tokens, K reserved tokens of one role, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from vla_core.batch import Role, TokenFields

_GIVEN_BY = {"image": "visual tokens", "prefix": "prefix tokens of the fusion", "query": "query embeddings"}


def check_counts(fields: TokenFields, given: Mapping[str, int]) -> None:
    """Compare the prompt's reserved tokens with what is to be written there.

    The collator's counts are plain numbers, so nothing waits for the device. Fields made by hand
    have none and are counted.

    Raises:
        ValueError: they differ; both numbers are named.
    """
    counts = fields.counts
    if counts is None:
        counts = {name: int((fields.roles == int(Role[name.upper()])).sum(1).max()) for name in given}
    for name, number in given.items():
        if counts[name] != number:
            raise ValueError(
                f"the prompt has {counts[name]} {name} tokens, but {number} {_GIVEN_BY[name]} were given; "
                "collate with the prompt of this head and fusion"
            )


def where(roles_BS: Tensor, role: Role, count: int) -> Tensor:
    """Columns ``[B, K]`` of a role, in order; every row has ``count`` of them."""
    # A stable sort keeps the order and, unlike nonzero, the shape is known without a synchronisation.
    return (roles_BS != int(role)).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def overwrite(embeds_BSH: Tensor, index_BK: Tensor, values_BKH: Tensor) -> Tensor:
    """``embeds`` with ``values`` at ``index``; gradients flow to both."""
    index = index_BK[..., None].expand(-1, -1, embeds_BSH.shape[-1])
    return embeds_BSH.scatter(1, index, values_BKH.to(embeds_BSH.dtype))
