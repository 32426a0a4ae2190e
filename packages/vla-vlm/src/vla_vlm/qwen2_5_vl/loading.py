"""From config to transformers' model: shapes, weights and image statistics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import initialization
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
)
from transformers.utils.hub import cached_file
from vla_core.errors import ConfigError

from vla_vlm.qwen2_5_vl.config import Qwen25VLConfig, TinyConfig
from vla_vlm.qwen2_5_vl.pixels import CLIP_MEAN, CLIP_STD

PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageStats:
    """Mean and standard deviation of pixels in [0, 1], per channel."""

    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD


def named_config(name: str) -> Qwen2_5_VLConfig:
    """The published architecture ``3b`` or ``7b``."""
    sizes = json.loads(files("vla_vlm").joinpath("assets", "sizes.json").read_text("utf-8"))
    return Qwen2_5_VLConfig(**sizes[name])


def tiny_config(tiny: TinyConfig, vocab_size: int) -> Qwen2_5_VLConfig:
    """The same architecture at the sizes of :class:`TinyConfig`."""
    half = tiny.hidden_size // tiny.n_heads // 2
    time = half // 4  # Qwen's split of the frequencies: 1/4 time, 3/8 height, 3/8 width
    side = (half - time) // 2
    every = tiny.full_attention_every
    return Qwen2_5_VLConfig(
        tie_word_embeddings=True,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": tiny.hidden_size,
            "intermediate_size": tiny.intermediate_size,
            "num_hidden_layers": tiny.n_layers,
            "num_attention_heads": tiny.n_heads,
            "num_key_value_heads": tiny.n_kv_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "initializer_range": tiny.init_std,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [half - 2 * side, side, side],
            },
        },
        vision_config={
            "depth": tiny.vision_depth,
            "hidden_size": tiny.vision_hidden,
            "intermediate_size": tiny.vision_intermediate,
            "num_heads": tiny.vision_heads,
            "out_hidden_size": tiny.hidden_size,
            "patch_size": tiny.patch_size,
            "spatial_merge_size": tiny.merge_size,
            "window_size": tiny.window_size,
            "fullatt_block_indexes": list(range(every - 1, tiny.vision_depth, every)),
            "initializer_range": tiny.init_std,
        },
    )


def hub_config(name: str) -> Qwen2_5_VLConfig:
    """The config of a hub id or directory, checked to be a Qwen2.5-VL."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    if not isinstance(config, Qwen2_5_VLConfig):
        raise ConfigError(
            f"base_vlm '{name}' is a '{config.model_type}', not a 'qwen2_5_vl'; "
            "name a Qwen2.5-VL model or another vlm"
        )
    return config


def _not_found(name: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0].rstrip(".")
    return ConfigError(
        f"base_vlm '{name}' can't be loaded ({reason}); give a local directory with config.json and "
        "weights, a hub id while online, or one of tiny, 3b, 7b"
    )


def image_stats(name: str) -> ImageStats:
    """Image statistics beside a model's weights; Qwen's own when the model brings no processor."""
    path = cached_file(name, PROCESSOR_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return ImageStats()
    data = json.loads(Path(path).read_text("utf-8"))
    return ImageStats(data.get("image_mean", CLIP_MEAN), data.get("image_std", CLIP_STD))


def random_model(config: Qwen2_5_VLConfig, options: Qwen25VLConfig, initialise: bool = True) -> Any:
    """A model of the shapes of ``config``; without ``initialise`` its weights hold garbage."""
    context = contextlib.nullcontext() if initialise else initialization.no_init_weights()
    with context:
        return Qwen2_5_VLModel._from_config(
            config,
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attn_implementation,
        )


def pretrained_model(options: Qwen25VLConfig) -> Any:
    """The model under a published checkpoint's language head, with its weights.

    Raises:
        ConfigError: not found, or the checkpoint lacks weights of the model. The language head is
            the only part of a checkpoint that is dropped.
    """
    try:
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            options.base_vlm,
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _not_found(options.base_vlm, error) from error
    full, info = loaded
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(key) for key in info[kind] if "lm_head" not in str(key))
        if names:
            raise ConfigError(
                f"base_vlm '{options.base_vlm}': {len(names)} {kind.replace('_', ' ')} in its weights, "
                f"first '{names[0]}'; the files don't belong to this architecture"
            )
    return full.model
