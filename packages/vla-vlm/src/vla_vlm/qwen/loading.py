"""From config to transformers' model: shapes and weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import nn
from transformers import initialization
from vla_core.errors import ConfigError

from vla_vlm.common.weights import WeightFiles, check_loaded, check_place
from vla_vlm.qwen.config import QwenConfig
from vla_vlm.qwen.family import Family

HEAD = "lm_head.weight"


def named_shapes(family: Family, name: str) -> Any:
    """The published architecture of a size such as ``3b``."""
    sizes = json.loads(files("vla_vlm").joinpath("assets", "sizes.json").read_text("utf-8"))
    return family.config_class(**sizes[family.key][name])


def tiny_shapes(family: Family, tiny: Any, vocab_size: int) -> Any:
    """The same architecture at the sizes under ``tiny``."""
    return family.config_class(tie_word_embeddings=True, **family.tiny_shapes(tiny, vocab_size))


def hub_shapes(family: Family, name: str, sizes: Sequence[str]) -> Any:
    """The config of a hub id or directory, checked to be of ``family``; ``sizes`` are for the error."""
    from transformers import AutoConfig

    try:
        check_place(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _not_found(name, error, sizes) from error
    if not isinstance(config, family.config_class):
        raise ConfigError(
            f"base_vlm '{name}' is a '{config.model_type}', not a '{family.key}'; "
            f"name a {family.title} model or another vlm"
        )
    return config


def _not_found(name: str, error: Exception, sizes: Sequence[str]) -> ConfigError:
    reason = str(error).splitlines()[0].rstrip(".")
    return ConfigError(
        f"base_vlm '{name}' can't be loaded ({reason}); give a local directory with config.json and "
        f"weights, a hub id while online, or one of {', '.join(sizes)}"
    )


def random_model(family: Family, shapes: Any, options: QwenConfig, initialise: bool = True) -> Any:
    """A model of the given shapes; without ``initialise`` its weights hold garbage."""
    context = contextlib.nullcontext() if initialise else initialization.no_init_weights()
    with context:
        return family.model_class._from_config(
            shapes,
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attn_implementation,
        )


def pretrained_model(family: Family, options: QwenConfig) -> Any:
    """The model under a published checkpoint's language head, with its weights.

    Raises:
        ConfigError: not found, or the checkpoint lacks weights of the model. The language head is
            the only part of a checkpoint that is dropped; :func:`read_head` gets it where it is wanted.
    """
    try:
        full, info = family.full_class.from_pretrained(
            options.base_vlm,
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _not_found(options.base_vlm, error, options.SIZES) from error
    check_loaded(options.base_vlm, info, ignore="lm_head")
    return full.model


def read_head(head: nn.Linear, name: str) -> None:
    """Fill ``head`` with the language head of a hub id or directory.

    Raises:
        ConfigError: the weights have none of this shape.
    """
    files = WeightFiles(name, "base_vlm")
    if HEAD not in files.keys or files.shape(HEAD) != list(head.weight.shape):
        found = files.shape(HEAD) if HEAD in files.keys else "missing"
        raise ConfigError(
            f"base_vlm '{name}': '{HEAD}' is {found}, expected {list(head.weight.shape)}; "
            "the files don't belong to this architecture"
        )
    with torch.no_grad():
        head.weight.copy_(files.read(HEAD))
