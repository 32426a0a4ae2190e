"""Florence-2 (arXiv 2311.06242): transformers' layers and weights, our loop around its encoder.

Imported lazily: a data worker that only unpickles the collator doesn't import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_vlm.florence2.config import Florence2TinyConfig, Florence2VLMConfig

if TYPE_CHECKING:
    from vla_vlm.florence2.model import Florence2

__all__ = ["Florence2", "Florence2TinyConfig", "Florence2VLMConfig"]


def __getattr__(name: str) -> Any:
    if name == "Florence2":
        from vla_vlm.florence2.model import Florence2

        return Florence2
    raise AttributeError(f"module 'vla_vlm.florence2' has no attribute '{name}'")
