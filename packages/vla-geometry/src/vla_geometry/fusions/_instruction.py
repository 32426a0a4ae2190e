"""The instruction, read in order: each token in the context of the others.

Shape legend: B rows, S prompt tokens, M text tokens, H hidden size, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vla_core.interfaces import TextTokens

from vla_geometry.fusions._attention import sinusoid
from vla_geometry.transformer import Block


class InstructionEncoder(nn.Module):
    """Word embeddings -> positions -> a small transformer over the instruction's tokens alone.

    The backbone's embeddings know nothing of their neighbours, so that anything computed from their sum
    takes 'A on B' for 'B on A'. Parameters: ``H W + 12 depth W^2``; FLOP a row
    ``2 M H W + depth (24 M W^2 + 4 M^2 W)``.
    """

    def __init__(self, hidden_size: int, width: int, depth: int, n_heads: int) -> None:
        super().__init__()
        self.norm_in, self.project = nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, text: TextTokens) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, M, W]`` in order and their bool mask ``[B, M]``."""
        index = text_columns(text)
        mask = text.instruction_mask.gather(1, index)
        embeds = text.embeds.gather(1, index[..., None].expand(-1, -1, text.embeds.shape[-1]))
        dtype = self.project.weight.dtype
        x = self.project(self.norm_in(embeds.to(dtype)).to(dtype)).to(dtype)
        at = sinusoid(torch.arange(x.shape[1], device=x.device), x.shape[2], 4.0, 1000.0)
        x = x + at.to(dtype)
        # Somebody must be attended to: a row without an instruction stays finite, and is masked later.
        seen = mask | ~mask.any(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm_out(x).to(dtype), mask


def text_columns(text: TextTokens) -> Tensor:
    """Columns ``[B, M]`` of each row's instruction, in order, then others up to M.

    M is the room for text: all columns that are not reserved, when the collator counted those. It comes
    from plain numbers, so nothing waits for the device and no instruction is cut.
    """
    reserved = sum((text.fields.counts or {}).values())
    order = (~text.instruction_mask).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : text.instruction_mask.shape[1] - reserved]
