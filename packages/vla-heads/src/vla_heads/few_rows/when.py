"""Where the kernels for few rows compute."""

from __future__ import annotations

import functools
import logging
from subprocess import CalledProcessError

import torch
from torch import Tensor

from vla_heads.few_rows.plans import MOST_ROWS

log = logging.getLogger("vla_heads.few_rows")

CAPABILITY = 9
"""Major compute capability that they are written for: Hopper."""


def capable(device: torch.device) -> bool:
    """Whether they run there."""
    return (
        device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == CAPABILITY and _startable()
    )


@functools.cache
def _startable() -> bool:
    """Whether Triton can start such kernels.

    It compiles what starts them with a C compiler, into a cache on disk; and what came with older torch
    does not start one before the other is done.
    """
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
        from triton.language.extra.cuda import gdc_wait  # noqa: F401
    except (ImportError, OSError, RuntimeError, CalledProcessError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("no kernels for few rows, which is slower: Triton cannot start any here (%s)", first[0])
        return False
    return True


def few(x: Tensor) -> bool:
    """Whether ``x [..., W]``, on such a device, is what they take: few rows of bfloat16, no gradients."""
    return (
        x.is_cuda
        and x.dtype is torch.bfloat16
        and not torch.is_grad_enabled()
        and x.shape[:-1].numel() <= MOST_ROWS
    )
