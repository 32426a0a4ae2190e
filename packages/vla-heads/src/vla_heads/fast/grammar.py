"""Which ids may come next, so that what is said is a whole chunk and no more.

An id stands for bytes, which complete some characters and may leave half of one; a chunk is
``count`` characters. What has been said is then two numbers a row: how many characters are missing, and
whether one is half said. An id may follow if the rest can still be said in the ids that are left.

Shape legend: B rows, N ids, R characters of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NEVER = 1 << 30


class Said(NamedTuple):
    """``missing`` characters and ``half`` (0 or 1), long ``[B]`` each."""

    missing: Tensor
    half: Tensor


def spells(piece: bytes, half: bool) -> tuple[int, bool] | None:
    """How many characters ``piece`` completes after a whole or a ``half`` one, and whether it ends in half
    of one; None if it can't stand there (or is empty)."""
    done = 0
    for byte in piece:
        if half != (0x80 <= byte < 0xC0) or 0xC0 <= byte < 0xC2 or byte >= 0xE0:
            return None
        half = byte >= 0xC2
        done += not half
    return (done, half) if piece else None


class Grammar(nn.Module):
    """Tables for one tokenizer and chunk size; no parameters, nothing to save.

    Args:
        pieces: bytes of each id.
        count: R.
    """

    done: Tensor
    end: Tensor
    fits: Tensor
    cost: Tensor

    def __init__(self, pieces: Sequence[bytes], count: int) -> None:
        super().__init__()
        moves = [[spells(piece, bool(half)) for piece in pieces] for half in (0, 1)]
        cost = np.full((count + 1, 2), NEVER, np.int64)
        cost[0, 0] = 0
        kinds = [{move for move in after if move is not None} for after in moves]
        for missing in range(1, count + 1):
            # Half a character first: it never needs a whole one with as many missing, as the other may.
            for half in (1, 0):
                ahead = [cost[missing - n, int(e)] for n, e in kinds[half] if n <= missing]
                cost[missing, half] = min(NEVER, 1 + min(ahead, default=NEVER))
        self.count, self.shortest = count, int(cost[count, 0])
        tables = {
            "done": torch.tensor([[0 if m is None else m[0] for m in after] for after in moves]),
            "end": torch.tensor([[0 if m is None else int(m[1]) for m in after] for after in moves]),
            "fits": torch.tensor([[m is not None for m in after] for after in moves]),
            "cost": torch.tensor(cost),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def start(self, rows: int) -> Said:
        """Nothing said yet."""
        missing = torch.full((rows,), self.count, device=self.cost.device)
        return Said(missing, torch.zeros_like(missing))

    def allowed(self, said: Said, left: int) -> Tensor:
        """Bool ``[B, N]``: ids that leave what can be said in ``left - 1`` more; none for a finished row."""
        missing_BN = said.missing[:, None] - self.done[said.half]
        cost_BN = self.cost[missing_BN.clamp(min=0), self.end[said.half]]
        return self.fits[said.half] & (missing_BN >= 0) & (cost_BN < left)

    def after(self, said: Said, ids: Tensor) -> Said:
        """With ``ids [B]`` said as well; a finished row stays as it is."""
        going = said.missing > 0
        missing = said.missing - self.done[said.half, ids]
        return Said(torch.where(going, missing, 0), torch.where(going, self.end[said.half, ids], 0))
