"""Vision-language backbones behind one protocol (``vla_core.interfaces.VisionLanguageModel``).

Names are imported on first use: ``import vla_vlm`` costs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_vlm.qwen2_5_vl import Qwen25VL, Qwen25VLConfig, TinyConfig

__version__ = "0.1.0"
__all__ = ["Qwen25VL", "Qwen25VLConfig", "TinyConfig"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vla_vlm import qwen2_5_vl

        return getattr(qwen2_5_vl, name)
    raise AttributeError(f"module 'vla_vlm' has no attribute '{name}'")
