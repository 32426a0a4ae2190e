"""Building a model without drawing the numbers that a checkpoint will overwrite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# In place, on a tensor that exists: leaving it out leaves the memory as it was allocated.
_FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.erfinv_})
# torch.nn.init's own functions arrive as wholes, and what they call is not seen any more.
_INIT_CONSTANTS = frozenset({"constant_", "ones_", "zeros_", "eye_", "dirac_"})
_DRAWS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.randn: torch.empty,
    torch.rand: torch.empty,
    torch.randn_like: torch.empty_like,
    torch.rand_like: torch.empty_like,
}


class without_random_init(TorchFunctionMode):
    """Within the block random initialisation does nothing; a 3B model is then built in seconds on a CPU.

    Only for a caller that assigns every parameter afterwards. Constants (ones, zeros, rotary tables) are
    made as ever, and a draw with a generator of its own is a value, not an initialisation.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is None:
            name = getattr(func, "__name__", "")
            inits = getattr(func, "__module__", None) == "torch.nn.init" and name not in _INIT_CONSTANTS
            if func in _FILLS or (inits and name.endswith("_")):
                return args[0] if args else kwargs["tensor"]
            if func in _DRAWS:
                kwargs.pop("generator", None)
                return _DRAWS[func](*args, **kwargs)
        return func(*args, **kwargs)
