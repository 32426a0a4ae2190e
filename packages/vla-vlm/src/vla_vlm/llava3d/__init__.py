"""LLaVA-3D (arXiv 2409.18125): a SigLIP or CLIP tower, a projector, and a Llama or Mistral decoder.

Imported lazily: a data worker that only unpickles the collator doesn't import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_vlm.llava3d.config import Llava3DConfig, Llava3DTinyConfig

if TYPE_CHECKING:
    from vla_vlm.llava3d.model import Llava3D

__all__ = ["Llava3D", "Llava3DConfig", "Llava3DTinyConfig"]


def __getattr__(name: str) -> Any:
    if name == "Llava3D":
        from vla_vlm.llava3d.model import Llava3D

        return Llava3D
    raise AttributeError(f"module 'vla_vlm.llava3d' has no attribute '{name}'")
