"""Qwen2.5-VL (arXiv 2502.13923): transformers' layers and weights, our loops around them.

Imported lazily: a data worker that only unpickles the collator doesn't import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_vlm.qwen2_5_vl.config import Qwen25VLConfig, TinyConfig

if TYPE_CHECKING:
    from vla_vlm.qwen2_5_vl.model import Qwen25VL

__all__ = ["Qwen25VL", "Qwen25VLConfig", "TinyConfig"]


def __getattr__(name: str) -> Any:
    if name == "Qwen25VL":
        from vla_vlm.qwen2_5_vl.model import Qwen25VL

        return Qwen25VL
    raise AttributeError(f"module 'vla_vlm.qwen2_5_vl' has no attribute '{name}'")
