"""Vision-language backbones behind one protocol (``vla_core.interfaces.VisionLanguageModel``).

Names are imported on first use: ``import vla_vlm`` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_vlm.florence2 import Florence2, Florence2TinyConfig, Florence2VLMConfig
    from vla_vlm.llava3d import Llava3D, Llava3DConfig, Llava3DTinyConfig
    from vla_vlm.paligemma import PaliGemma, PaliGemmaTinyConfig, PaliGemmaVLMConfig
    from vla_vlm.qwen2_5_vl import Qwen25VL, Qwen25VLConfig, TinyConfig
    from vla_vlm.qwen3_vl import Qwen3TinyConfig, Qwen3VL, Qwen3VLConfig

__version__ = "0.1.0"
_PACKAGES = {
    "florence2": ("Florence2", "Florence2TinyConfig", "Florence2VLMConfig"),
    "llava3d": ("Llava3D", "Llava3DConfig", "Llava3DTinyConfig"),
    "paligemma": ("PaliGemma", "PaliGemmaTinyConfig", "PaliGemmaVLMConfig"),
    "qwen2_5_vl": ("Qwen25VL", "Qwen25VLConfig", "TinyConfig"),
    "qwen3_vl": ("Qwen3TinyConfig", "Qwen3VL", "Qwen3VLConfig"),
}
__all__ = [
    "Florence2",
    "Florence2TinyConfig",
    "Florence2VLMConfig",
    "Llava3D",
    "Llava3DConfig",
    "Llava3DTinyConfig",
    "PaliGemma",
    "PaliGemmaTinyConfig",
    "PaliGemmaVLMConfig",
    "Qwen3TinyConfig",
    "Qwen3VL",
    "Qwen3VLConfig",
    "Qwen25VL",
    "Qwen25VLConfig",
    "TinyConfig",
]


def __getattr__(name: str) -> Any:
    for package, names in _PACKAGES.items():
        if name in names:
            return getattr(import_module(f"vla_vlm.{package}"), name)
    raise AttributeError(f"module 'vla_vlm' has no attribute '{name}'")
