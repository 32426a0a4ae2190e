"""What of a tensor is on this rank: all of it, or its share where an engine spreads parameters."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this rank holds, in the same memory; all of it where that is so."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shape(tensor: Tensor) -> tuple[int, ...]:
    """That of all of ``tensor``, which DeepSpeed empties between its uses where it spreads parameters."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered by all ranks together; the tensor itself where every rank has it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
