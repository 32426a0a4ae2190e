"""What an observation contributes to a flow-matching head.

Shape legend: B rows, n heads, S context tokens, d head width, P own tokens before the actions, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vla_heads.dit import KeysValues


@dataclass
class Prepared:
    """What an observation contributes, computed once and read by every step and repeat.

    Args:
        context: keys and values ``[B, n, S, d]`` of each block; None where a block reads none.
        context_mask: bool ``[B, 1, 1, S]``.
        prefix: state and future tokens ``[B, P, W]``.
        embodiment: long ``[B]``, or None.
    """

    context: tuple[KeysValues | None, ...]
    context_mask: Tensor
    prefix: Tensor
    embodiment: Tensor | None = None
