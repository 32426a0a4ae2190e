"""AdamW's moments in 8 bits, blocks of 256 with a scale each (arXiv 2110.02861); torchao's number format."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from vla_core.errors import ConfigError

from vla_train.parts import local

BLOCK = 256
LEAST = 4096
"""Smaller tensors keep fp32, as do those that are no whole number of blocks: they weigh nothing."""
BYTES = 1 + 4 / BLOCK
"""Of one moment of one weight."""


def check_installed() -> None:
    """Raise :class:`ConfigError` where torchao is missing."""
    try:
        import torchao.optim.quant_utils  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"trainer.moments: 8bit needs the package '{error.name}'; pip install 'vla-train[torchao]'"
        ) from error


def fits(parameter: Tensor) -> bool:
    """Whether the moments of a parameter are kept in 8 bits."""
    return parameter.numel() >= LEAST and parameter.numel() % BLOCK == 0


@cache
def _values(signed: bool, device: torch.device) -> Tensor:
    """float32 ``[256]``, rising: what a code stands for, in units of its block's scale."""
    from torchao.optim.quant_utils import create_dynamic_map

    return torch.tensor(create_dynamic_map(signed), device=device)


def _quantize(flat: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor

    scaled, scale = scale_tensor(flat, BLOCK)
    return quantize_8bit_with_qmap(scaled, values), scale


@cache
def _compiled() -> Any:
    """One pass over memory instead of thirty; made when needed, for it imports the whole compiler."""
    return torch.compile(_quantize, dynamic=True)


def quantize(moment: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 in the shape of ``moment`` and scales float32, one a block."""
    do: Any = _compiled() if moment.device.type == "cuda" else _quantize
    codes, scale = do(moment.reshape(-1), _values(signed, moment.device))
    return codes.reshape(moment.shape), scale


def widen(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """float32, inverse of :func:`quantize`."""
    values = _values(signed, codes.device)[codes.reshape(-1).int()]
    return (values.reshape(-1, BLOCK) * scale[:, None]).reshape(codes.shape)


class Moment:
    """One of the two moments in the state of a weight: a tensor, or codes and scales.

    Args:
        name: ``exp_avg`` or ``exp_avg_sq``, which is never negative.
    """

    def __init__(self, name: str) -> None:
        self.name, self.signed = name, name == "exp_avg"

    def start(self, state: dict[str, Any], parameter: Tensor, dtype: torch.dtype) -> None:
        """Zeros; ``dtype``: uint8 for 8 bits where they fit."""
        if dtype == torch.uint8 and fits(parameter):
            zeros = torch.zeros_like(parameter, dtype=torch.float32)
            state[self.name], state[f"{self.name}_scale"] = quantize(zeros, self.signed)
        else:
            kept = torch.float32 if dtype == torch.uint8 else dtype
            state[self.name] = torch.zeros_like(parameter, dtype=kept)

    def read(self, state: dict[str, Any]) -> Tensor:
        """float32; what is kept so already is the very memory."""
        scale = state.get(f"{self.name}_scale")
        if scale is None:
            return local(state[self.name]).float()
        return widen(state[self.name], scale, self.signed)

    def write(self, state: dict[str, Any], value: Tensor) -> None:
        """Keep float32 ``value``."""
        scale = state.get(f"{self.name}_scale")
        if scale is None:
            local(state[self.name]).copy_(value)
            return
        codes, new = quantize(value, self.signed)
        state[self.name].copy_(codes)
        scale.copy_(new)


MOMENTS = (Moment("exp_avg"), Moment("exp_avg_sq"))
