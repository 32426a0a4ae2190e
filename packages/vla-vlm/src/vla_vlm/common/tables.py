"""Tensors that are no parameters: computed from the config, never saved, never rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Tables(nn.Module):
    """Buffers that follow the module's device but not its dtype: ``.to(bfloat16)`` would round angles.

    They hold true values even when the module is built on the meta device, so that
    ``to_empty(device=...)`` leaves nothing to be computed again.
    """

    def _table(self, name: str, value: Tensor) -> None:
        device = torch.get_default_device()
        value = value if device.type == "meta" else value.to(device)
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        tables = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, table in tables.items():
            device = getattr(self, name).device
            setattr(self, name, table if device.type == "meta" else table.to(device))
        return self
