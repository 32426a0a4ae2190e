"""Which attention kernels there are, what each needs, and how each wants its mask."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from vla_core.errors import ConfigError, UserError

FLASH = "flash_attention_2"


def check_available(implementation: str) -> None:
    """Refuse a kernel that is not installed, before anything is built or loaded.

    Raises:
        ConfigError: how to get it, or which value works.
    """
    if implementation == FLASH and find_spec("flash_attn") is None:
        raise ConfigError(
            f"attn_implementation: {FLASH} needs the package flash_attn, which is not installed; "
            "pip install 'vla-vlm[flash-attn]' (on a machine with a CUDA compiler), or set sdpa"
        )


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where ``x`` is; the meta device stands for any."""
    devices = ("cpu", "cuda") if x.device.type == "meta" else (x.device.type,)
    return any(torch.is_autocast_enabled(device) for device in devices)


def check_runs(implementation: str, weight: Tensor) -> None:
    """Refuse a kernel on a device or dtype that it does not know; it is never replaced in silence.

    Raises:
        UserError: flash attention off a GPU, or in float32.
    """
    if implementation != FLASH:
        return
    device = weight.device.type
    half = weight.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device)
    if device != "cuda" or not half:
        raise UserError(
            f"attn_implementation: {FLASH} runs on a CUDA device in half precision, this is {device} in "
            f"{weight.dtype}; set sdpa, or use dtype: bfloat16 or trainer.precision: bf16 on a GPU"
        )


def causal_mask(valid_BS: Tensor, segments_BS: Tensor | None = None) -> Tensor:
    """Bool ``[B, 1, S, S]``, True attends: earlier valid keys of its segment, and always the token itself.

    A padded row of queries would otherwise attend to nothing, which is 0 / 0 in a softmax; what it
    computes is never read.
    """
    s = valid_BS.shape[1]
    ones = torch.ones(s, s, dtype=torch.bool, device=valid_BS.device)
    eye = torch.eye(s, dtype=torch.bool, device=valid_BS.device)
    seen = ones.tril() & valid_BS[:, None, :]
    if segments_BS is not None:
        seen = seen & (segments_BS[:, :, None] == segments_BS[:, None, :])
    return (seen | eye)[:, None]


def for_kernel(mask: Tensor | None, implementation: str, dtype: torch.dtype) -> Tensor | None:
    """A bool mask ``[B, 1, Q or 1, S]`` (True attends) as the attention implementation wants it.

    Eager adds it to the scores; flash attention takes valid keys ``[B, S]`` and leaves the others out.

    Raises:
        ConfigError: a mask with a row for each query, which flash attention cannot take.
    """
    if mask is None or implementation not in ("eager", FLASH):
        return mask
    if implementation == FLASH:
        if mask.shape[-2] != 1:
            raise ConfigError(
                f"attn_implementation: {FLASH} cannot express this model's attention mask; set sdpa"
            )
        return mask[:, 0, 0]
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def causal_for_kernel(
    valid_BS: Tensor, implementation: str, dtype: torch.dtype, segments_BS: Tensor | None = None
) -> Tensor | None:
    """:func:`causal_mask` as the implementation wants it; to flash attention a layer says so itself.

    Raises:
        ConfigError: segments, which flash attention cannot keep apart by a mask.
    """
    if implementation == FLASH and segments_BS is None:
        return valid_BS
    return for_kernel(causal_mask(valid_BS, segments_BS), implementation, dtype)


def goes_without_mask(implementation: str, x: Tensor) -> bool:
    """Whether causal attention without a mask is the cheaper way to the same numbers.

    Without one, SDPA takes its flash kernel, which skips half the scores and reads grouped keys and
    values in place; with one it copies them for every query head. A GPU has no such kernel for float32.
    """
    if implementation == FLASH:
        return True
    if implementation != "sdpa":
        return False
    half = x.dtype in (torch.bfloat16, torch.float16) or autocasts(x)
    return half or x.device.type == "cpu"
