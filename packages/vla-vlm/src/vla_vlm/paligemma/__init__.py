"""PaliGemma (arXiv 2407.07726): transformers' layers and weights, our loop around its decoder.

Imported lazily: a data worker that only unpickles the collator doesn't import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_vlm.paligemma.config import PaliGemmaTinyConfig, PaliGemmaVLMConfig

if TYPE_CHECKING:
    from vla_vlm.paligemma.model import PaliGemma

__all__ = ["PaliGemma", "PaliGemmaTinyConfig", "PaliGemmaVLMConfig"]


def __getattr__(name: str) -> Any:
    if name == "PaliGemma":
        from vla_vlm.paligemma.model import PaliGemma

        return PaliGemma
    raise AttributeError(f"module 'vla_vlm.paligemma' has no attribute '{name}'")
