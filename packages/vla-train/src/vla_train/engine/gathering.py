"""Whole tensors from parts that lie in the host memory of each rank, gathered beside the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, gather, get_world_size


@dataclass(frozen=True)
class Part:
    """What a rank has of a tensor: the parts of all ranks, one after the other, begin with the whole.

    Args:
        own: in host memory, on no rank more than on the first.
        most: numbers of the first rank's.
        shape: of the whole.
    """

    own: Tensor
    most: int
    shape: tuple[int, ...]

    def whole(self, channel: ProcessGroup | None, first: bool) -> Tensor | None:
        """All of it, on the first rank; called by all ranks. ``channel``: None where there is one."""
        flat = self.own.reshape(-1)
        if channel is None:
            return flat[: math.prod(self.shape)].view(self.shape)
        padded = flat.new_zeros(self.most)
        padded[: len(flat)] = flat
        room = padded.new_empty(get_world_size(channel) if first else 0, self.most)
        # As bytes: not every backend knows every type.
        gather(padded.view(torch.uint8), [each.view(torch.uint8) for each in room] or None, group=channel)
        return room.view(-1)[: math.prod(self.shape)].view(self.shape) if first else None


def gathered(
    parts: Mapping[str, Part | Tensor], channel: ProcessGroup | None, first: bool
) -> dict[str, Tensor]:
    """Name -> whole tensor, on the first rank; empty elsewhere. Called by all ranks, in the same order.

    A tensor that is no part is the same on all ranks.
    """
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        whole = part.whole(channel, first) if isinstance(part, Part) else part
        if first and whole is not None:
            found[name] = whole
    return found
