"""Qwen2.5-VL (arXiv 2502.13923): transformers' layers and weights, our loops around them."""

from vla_vlm.qwen2_5_vl.config import Qwen25VLConfig, TinyConfig
from vla_vlm.qwen2_5_vl.model import Qwen25VL

__all__ = ["Qwen25VL", "Qwen25VLConfig", "TinyConfig"]
