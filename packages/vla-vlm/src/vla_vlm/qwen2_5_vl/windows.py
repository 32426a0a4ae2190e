"""Window attention with fixed index tables: no loop over windows, no host synchronisation.

The image size is fixed at build, so which token sits in which window is known there. Tokens are
put in window order once; equal windows are then a reshape, unequal ones (a grid that is no
multiple of the window) are padded to the largest and masked.
N patch tokens, U = merge_size**2 patches a merged token, W windows, L patches in the largest window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_vlm.common.tables import Tables


class WindowLayout(Tables):
    """Index tables of one image size.

    Args:
        grid: (rows, columns) of merged tokens.
        unit: U, patches in a merged token.
        window: side of a window in merged tokens.

    Attributes:
        identity: a single window, or none: nothing needs to be reordered.
        order: long ``[N / U]``, merged tokens in window order; ``restore`` is its inverse.
    """

    order: Tensor
    restore: Tensor
    pad: Tensor
    unpad: Tensor
    key_mask: Tensor

    def __init__(self, grid: tuple[int, int], unit: int, window: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            tables = self._make(grid, unit, window)
        for name, table in tables.items():
            self._table(name, table)

    def _make(self, grid: tuple[int, int], unit: int, window: int) -> dict[str, Tensor]:
        index = torch.arange(grid[0] * grid[1]).view(grid)
        windows = [
            block.flatten() for band in index.split(window, dim=0) for block in band.split(window, dim=1)
        ]
        sizes = [len(block) * unit for block in windows]
        self.n_windows, self.size, self.regular = len(windows), max(sizes), len(set(sizes)) == 1
        self.identity = self.n_windows == 1
        order, slots, lengths = torch.cat(windows), torch.arange(self.size), torch.tensor(sizes)
        starts = (lengths.cumsum(0) - lengths)[:, None]
        key_mask = slots[None, :] < lengths[:, None]  # [W, L]
        return {
            "order": order,
            "restore": order.argsort(),
            "key_mask": key_mask[:, None, None, :],
            # Padding slots read the window's first token and are masked out as keys.
            "pad": torch.where(key_mask, starts + slots, starts).flatten(),
            "unpad": key_mask.flatten().nonzero().flatten(),
        }

    def split(self, x_BNhd: Tensor) -> Tensor:
        """Tokens in window order ``[B, N, heads, d]`` -> ``[B * W, heads, L, d]``."""
        b, _, heads, d = x_BNhd.shape
        if not self.regular:
            x_BNhd = x_BNhd[:, self.pad]
        return x_BNhd.reshape(b * self.n_windows, self.size, heads, d).transpose(1, 2)

    def join(self, x_WLhd: Tensor, batch: int) -> Tensor:
        """Attention output ``[B * W, L, heads, d]`` -> ``[B, N, heads * d]`` in window order."""
        x = x_WLhd.reshape(batch, self.n_windows * self.size, -1)
        return x if self.regular else x[:, self.unpad]

    def mask(self, batch: int) -> Tensor | None:
        """Bool ``[B * W, 1, 1, L]``, False for padding; None when windows are equal."""
        return None if self.regular else self.key_mask.repeat(batch, 1, 1, 1)
