"""Where the kernels for few rows compute."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_heads.few_rows.plans import MOST_ROWS

CAPABILITY = 9
"""Major compute capability that they are written for: Hopper."""


def capable(device: torch.device) -> bool:
    """Whether they run there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == CAPABILITY


def few(x: Tensor) -> bool:
    """Whether ``x [..., W]``, on such a device, is what they take: few rows of bfloat16, no gradients."""
    return (
        x.is_cuda
        and x.dtype is torch.bfloat16
        and not torch.is_grad_enabled()
        and x.shape[:-1].numel() <= MOST_ROWS
    )
