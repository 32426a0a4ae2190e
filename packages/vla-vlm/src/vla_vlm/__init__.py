"""Vision-language backbones behind one protocol (``vla_core.interfaces.VisionLanguageModel``).

Names are imported on first use: ``import vla_vlm`` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_vlm.florence2 import Florence2, Florence2TinyConfig, Florence2VLMConfig
    from vla_vlm.qwen2_5_vl import Qwen25VL, Qwen25VLConfig, TinyConfig
    from vla_vlm.qwen3_vl import Qwen3TinyConfig, Qwen3VL, Qwen3VLConfig

__version__ = "0.1.0"
__all__ = [
    "Florence2",
    "Florence2TinyConfig",
    "Florence2VLMConfig",
    "Qwen3TinyConfig",
    "Qwen3VL",
    "Qwen3VLConfig",
    "Qwen25VL",
    "Qwen25VLConfig",
    "TinyConfig",
]
_PACKAGES = {"Florence2": "florence2", "Qwen3": "qwen3_vl"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        package = next((p for start, p in _PACKAGES.items() if name.startswith(start)), "qwen2_5_vl")
        return getattr(import_module(f"vla_vlm.{package}"), name)
    raise AttributeError(f"module 'vla_vlm' has no attribute '{name}'")
