"""``compat: starvla``: one adapter block, in its two versions.

Shape legend: B rows, T action tokens, Q query and state tokens, S backbone tokens, W width, n heads,
d head width, K keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.shard import ShardUnit

from vla_heads.dit import merge_heads, split_heads


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions as StarVLA writes them: neighbouring dims turn together, by unlike angles.

    Args:
        x: ``[B, n, K, d]``.
        position: ``[B, K]`` or ``[1, K]``.
    """
    half = x.shape[-1] // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angle = position.float()[..., None] * torch.exp(-math.log(10_000.0) * steps)
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


class StarVLAAdapterBlock(ShardUnit, nn.Module):
    """``relu(Linear(LayerNorm(x + attention)))``, the attention over own, query and backbone tokens.

    ``pro`` blocks have keys and values for each of the three and rotary positions, and scale the scores
    of the backbone's tokens by tanh(gate); the others share one projection, and scale the queries'.
    """

    def __init__(self, width: int, n_heads: int, pro: bool) -> None:
        super().__init__()
        self.n_heads, self.pro = n_heads, pro
        self.q = nn.Linear(width, width)
        self.own_kv = nn.Linear(width, 2 * width)
        self.query_kv = nn.Linear(width, 2 * width) if pro else None
        self.context_kv = nn.Linear(width, 2 * width) if pro else None
        self.out = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.ff_norm, self.ff = nn.LayerNorm(width), nn.Linear(width, width)

    def _keys(self, x: Tensor, projection: nn.Module | None, position: Tensor) -> tuple[Tensor, Tensor]:
        k, v = split_heads((projection or self.own_kv)(x), 2, self.n_heads)
        return (rotate(k, position) if self.pro else k), v

    def forward(self, x: Tensor, queries: Tensor | None, context: Tensor | None, seen: Tensor) -> Tensor:
        """One block.

        Args:
            x: action tokens ``[B, T, W]``.
            queries: query states and the state's token ``[B, Q, W]``, or None.
            context: hidden states ``[B, S, W]``, or None.
            seen: bool ``[B, S]``: those of the context that are attended to.
        """
        (q,) = split_heads(self.q(x), 1, self.n_heads)
        steps = torch.arange(x.shape[1], device=x.device)[None]
        if self.pro:
            q = rotate(q, steps)
        k, v = self._keys(x, None, steps)
        gate = self.gate.tanh()
        scores, values = [q @ k.mT], [v]
        if queries is not None:
            k, v = self._keys(queries, self.query_kv, torch.arange(queries.shape[1], device=x.device)[None])
            scores.append(q @ k.mT * (1.0 if self.pro else gate))
            values.append(v)
        if context is not None:
            k, v = self._keys(context, self.context_kv, seen.cumsum(1) - 1)
            score = q @ k.mT * (gate if self.pro else 1.0)
            scores.append(score.masked_fill(~seen[:, None, None], -math.inf))
            values.append(v)
        weights = torch.softmax(torch.cat(scores, dim=-1) / math.sqrt(q.shape[-1]), dim=-1)
        attended = merge_heads(weights @ torch.cat(values, dim=2))
        return F.relu(self.ff(self.ff_norm(self.out(attended) + x)))
