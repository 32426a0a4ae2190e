"""From the sizes under ``tiny`` to what transformers' configs call them."""

from __future__ import annotations

from typing import Any

from vla_vlm.qwen.config import QwenSizes


def mrope_sections(sizes: QwenSizes) -> list[int]:
    """Frequencies for time, height and width; time gets the rest of an equal split of 3/8 each."""
    half = sizes.hidden_size // sizes.n_heads // 2
    side = (half - half // 4) // 2
    return [half - 2 * side, side, side]


def text_shapes(sizes: QwenSizes, vocab_size: int, rope: dict[str, Any]) -> dict[str, Any]:
    """``text_config``; ``rope`` adds to its ``rope_parameters``."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": sizes.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": mrope_sections(sizes), **rope},
    }


def vision_shapes(sizes: QwenSizes) -> dict[str, Any]:
    """``vision_config``."""
    return {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden_size,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": sizes.merge_size,
        "initializer_range": sizes.init_std,
    }
