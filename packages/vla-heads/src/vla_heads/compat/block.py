"""``compat: starvla``: the transformer block of StarVLA's flow-matching heads.

A block has one attention: to the backbone, or among its own tokens. In layerwise heads from before
June 2026 every block attends to the backbone, so that action tokens never see each other.

Shape legend: B rows, S context tokens, H context width, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from vla_heads.dit import KeysValues, UnitSequential
from vla_heads.groot_flow.block import InterleavedBlock


class StarVLABlock(InterleavedBlock):
    """AdaLN -> attention -> LayerNorm without parameters -> feed-forward, with residuals.

    Args:
        context_width: H for a block that cross-attends, None for one that self-attends.
        project: LayerNorm and Linear H -> W bring the context to the width of the own tokens first.
    """

    def __init__(
        self, width: int, n_heads: int, context_width: int | None, dropout: float, project: bool = False
    ) -> None:
        reads = context_width if context_width is None or not project else width
        super().__init__(width, n_heads, reads, dropout)
        self.ff_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.context_in = (
            UnitSequential(nn.LayerNorm(context_width), nn.Linear(context_width, width))
            if project and context_width is not None
            else None
        )

    def project_context(self, context: Tensor) -> KeysValues:
        """Keys and values of the context ``[B, S, H]``; once per observation."""
        return super().project_context(context if self.context_in is None else self.context_in(context))
