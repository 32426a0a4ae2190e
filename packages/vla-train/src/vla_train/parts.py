"""What of a tensor is on this rank: all of it, or its share where an engine spreads parameters."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(thing: object) -> TypeGuard[DTensor]:
    """Whether it is a tensor of which each rank holds a share; FSDP2 alone makes these, and imports them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(thing, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this rank holds, in the same memory; all of it where that is so."""
    return tensor.to_local() if is_split(tensor) else tensor


def shape(tensor: Tensor) -> tuple[int, ...]:
    """That of all of ``tensor``, which DeepSpeed empties between its uses where it spreads parameters."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered by all ranks together; the tensor itself where every rank has it."""
    return tensor.full_tensor() if is_split(tensor) else tensor
