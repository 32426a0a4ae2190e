"""Which Florence-2 to build: the sizes under ``tiny``, a published size, or what a checkpoint brings."""

from __future__ import annotations

import contextlib
import copy
import json
from importlib.resources import files
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, initialization
from transformers.models.florence2.configuration_florence2 import Florence2Config
from transformers.models.florence2.modeling_florence2 import (
    Florence2ForConditionalGeneration,
    Florence2Model,
)
from vla_core.errors import ConfigError

from vla_vlm.common import tokenizer
from vla_vlm.common.tokenizer import SpecialIds
from vla_vlm.common.weights import check_loaded, check_place
from vla_vlm.florence2.config import HEAD_DIM, Florence2TinyConfig, Florence2VLMConfig

SPECIAL = ("<s>", "<pad>", "</s>", "<image>")


def shipped_tokenizer() -> Tokenizer:
    """The small tokenizer of this package with Florence-2's marks."""
    tokens = tokenizer.shipped()
    tokens.add_special_tokens(list(SPECIAL))
    return tokens


def special_ids(tokens: Tokenizer, where: str) -> SpecialIds:
    """Look the special tokens up; ``where`` names the tokenizer in the error.

    An image is written as one token for its mean, then one for each place; all of them, prefix and query
    tokens too, are told apart by their roles.
    """
    _, pad, _, image = _ids(tokens, where)
    return SpecialIds(pad, image, image, image, vision_start=image)


def _ids(tokens: Tokenizer, where: str) -> tuple[int, ...]:
    found = {token: tokens.token_to_id(token) for token in SPECIAL}
    ids = tuple(number for number in found.values() if number is not None)
    if len(ids) < len(found):
        missing = [token for token, number in found.items() if number is None]
        raise ConfigError(
            f"tokenizer of '{where}' lacks {', '.join(missing)}; use the tokenizer of a Florence-2 model "
            "that transformers knows (florence-community/Florence-2-base)"
        )
    return ids


def tiny_shapes(sizes: Florence2TinyConfig) -> dict[str, Any]:
    """What Florence2Config calls the sizes under ``tiny``; no dropout, for few demonstrations."""
    stages = len(sizes.vision_widths)
    heads = [width // HEAD_DIM for width in sizes.vision_widths]
    return {
        "vision_config": {
            "embed_dim": list(sizes.vision_widths),
            "depths": list(sizes.vision_depths),
            "patch_stride": list(sizes.vision_strides),
            "patch_size": [7, *[3] * (stages - 1)],
            "patch_padding": [3, *[1] * (stages - 1)],
            "patch_prenorm": [False, *[True] * (stages - 1)],
            "num_heads": heads,
            "num_groups": heads,
            "window_size": sizes.window_size,
            "projection_dim": sizes.hidden_size,
            "drop_path_rate": 0.0,
            "initializer_range": sizes.init_std,
        },
        "text_config": {
            "d_model": sizes.hidden_size,
            "encoder_layers": sizes.n_layers,
            "encoder_attention_heads": sizes.n_heads,
            "encoder_ffn_dim": sizes.intermediate_size,
            "decoder_layers": 1,
            "decoder_attention_heads": sizes.n_heads,
            "decoder_ffn_dim": sizes.intermediate_size,
            "max_position_embeddings": sizes.max_positions,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "init_std": sizes.init_std,
        },
    }


def named_shapes(name: str, config: Florence2VLMConfig, tokens: Tokenizer) -> Any:
    """A size of :attr:`Florence2VLMConfig.SIZES` for the shipped tokenizer."""
    if name == "tiny":
        shapes = tiny_shapes(config.tiny)
        shapes["text_config"]["vocab_size"] = tokens.get_vocab_size()
    else:
        sizes = json.loads(files("vla_vlm").joinpath("assets", "sizes.json").read_text("utf-8"))
        shapes = sizes["florence2"][name]
    start, pad, end, image = _ids(tokens, name)
    shapes["text_config"].update(
        bos_token_id=start,
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=end,
        forced_eos_token_id=None,
    )
    return Florence2Config(image_token_id=image, **shapes)


def hub_shapes(name: str) -> Any:
    """The config of a hub id or directory.

    Raises:
        ConfigError: not found, or of another architecture.
    """
    try:
        check_place(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    if not isinstance(config, Florence2Config):
        raise ConfigError(
            f"base_vlm '{name}' is a '{config.model_type}', not a 'florence2'; name a Florence-2 model that "
            "transformers knows (florence-community/Florence-2-base) or another vlm"
        )
    return config


def _not_found(name: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0].rstrip(".")
    return ConfigError(
        f"base_vlm '{name}' can't be loaded ({reason}); give a local directory with config.json and "
        f"weights, a hub id while online, or one of {', '.join(Florence2VLMConfig.SIZES)}"
    )


def random_model(shapes: Any, config: Florence2VLMConfig, initialise: bool = True) -> Any:
    """A model of the given shapes without its decoder; without ``initialise`` its weights hold garbage."""
    shapes = copy.deepcopy(shapes)
    shapes.text_config.decoder_layers = 0  # it would be drawn, and thrown away
    context = contextlib.nullcontext() if initialise else initialization.no_init_weights()
    with context:
        model = Florence2Model._from_config(
            shapes,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
        )
    return without_decoder(model, config)


def pretrained_model(config: Florence2VLMConfig) -> Any:
    """The encoder of a published checkpoint, with its weights.

    Raises:
        ConfigError: not found, or its weights are not those of the architecture.
    """
    try:
        loaded: Any = Florence2ForConditionalGeneration.from_pretrained(
            config.base_vlm,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _not_found(config.base_vlm, error) from error
    full, info = loaded
    check_loaded(config.base_vlm, info)
    return without_decoder(full.model, config)


def without_decoder(model: Any, config: Florence2VLMConfig) -> Any:
    """Drop the text decoder, and the second name of the embedding that it shared with the encoder."""
    if config.gradient_checkpointing:
        # Before: it looks for that name.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    del model.language_model.decoder, model.language_model.shared
    return model
