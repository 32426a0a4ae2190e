"""Qwen3-VL (arXiv 2511.21631): transformers' layers and weights, our loops around them.

Imported lazily: a data worker that only unpickles the collator doesn't import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_vlm.qwen3_vl.config import Qwen3TinyConfig, Qwen3VLConfig

if TYPE_CHECKING:
    from vla_vlm.qwen3_vl.model import Qwen3VL

__all__ = ["Qwen3TinyConfig", "Qwen3VL", "Qwen3VLConfig"]


def __getattr__(name: str) -> Any:
    if name == "Qwen3VL":
        from vla_vlm.qwen3_vl.model import Qwen3VL

        return Qwen3VL
    raise AttributeError(f"module 'vla_vlm.qwen3_vl' has no attribute '{name}'")
