"""What DeepSpeed splits at stage 3, from shares: one parameter at a time is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.runtime.zero import Init
from torch import nn

from vla_train.engine.shares import fill


def partition(model: nn.Module, config: Mapping[str, Any], device: torch.device) -> None:
    """Have DeepSpeed split the parameters of ``model``, as it would at the start of its engine.

    Args:
        model: its parameters have their numbers, or shares of them.
        config: DeepSpeed's.
        device: on which the model computes.
    """
    # What is kept by shares is made whole parameter by parameter.
    model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
    Init(module=_OneByOne(model, device, _low(config)), config_dict_or_path=_settled(config))


class _OneByOne(nn.Module):
    """Its parameters have their numbers only when they are asked for.

    DeepSpeed splits one before it takes the next.
    """

    def __init__(self, model: nn.Module, device: torch.device, low: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.device, self.low = model, device, low

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """In the order of the model, as DeepSpeed's engine would have rounded them."""
        for parameter in self.model.parameters(recurse):
            fill(parameter, self.device)
            if self.low is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.low)
            yield parameter


def _low(config: Mapping[str, Any]) -> torch.dtype | None:
    """What the engine rounds parameters to before it splits them, but not those that come to it split."""
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return next((types[key] for key in types if config.get(key, {}).get("enabled") is True), None)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what accelerate finds out later, of which splitting reads nothing."""
    return {
        key: _settled(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != "auto"
    }
