"""Which PaliGemma to build: the sizes under ``tiny``, a published size, or what a checkpoint brings."""

from __future__ import annotations

import contextlib
import json
from importlib.resources import files
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaModel,
    initialization,
)
from vla_core.errors import ConfigError

from vla_vlm.common import tokenizer
from vla_vlm.common.owned import retype
from vla_vlm.common.tokenizer import SpecialIds
from vla_vlm.common.towers import own_tower
from vla_vlm.common.weights import check_loaded, check_place
from vla_vlm.paligemma.config import PaliGemmaTinyConfig, PaliGemmaVLMConfig
from vla_vlm.paligemma.prefix import PrefixLayer

IMAGE_TOKEN = "<image>"
SPECIAL = ("<pad>", "<eos>", "<bos>", IMAGE_TOKEN)


class ScaledEmbedding(nn.Embedding):
    """Gemma's: rows times the square root of their width.

    transformers keeps the factor in a buffer, which is lost when a module made on the meta device is
    given memory.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` -> ``[..., H]``; the factor is rounded to the weight's dtype, as published."""
        return super().forward(ids) * self.weight.new_full((), self.embedding_dim**0.5)


def shipped_tokenizer() -> Tokenizer:
    """The small tokenizer of this package with Gemma's marks."""
    tokens = tokenizer.shipped()
    tokens.add_special_tokens(list(SPECIAL))
    return tokens


def special_ids(tokens: Tokenizer, where: str) -> SpecialIds:
    """Look the special tokens up; ``<image>`` is added where the tokenizer is Gemma's own.

    Image, prefix and query tokens are told apart by their roles.

    Raises:
        ConfigError: the tokenizer is none of Gemma's; ``where`` names it.
    """
    missing = [text for text in ("<pad>", "<bos>") if tokens.token_to_id(text) is None]
    if missing:
        raise ConfigError(
            f"tokenizer of '{where}' lacks {', '.join(missing)}; use the tokenizer of a PaliGemma model"
        )
    if tokens.token_to_id(IMAGE_TOKEN) is None:
        tokens.add_special_tokens([IMAGE_TOKEN])
    pad, image = tokens.token_to_id("<pad>"), tokens.token_to_id(IMAGE_TOKEN)
    assert pad is not None
    assert image is not None
    return SpecialIds(pad, image, image, image)


def tiny_shapes(sizes: PaliGemmaTinyConfig, tokens: Tokenizer, image_size: tuple[int, int]) -> dict[str, Any]:
    """What PaliGemmaConfig calls the sizes under ``tiny``, for images of one size.

    Raises:
        ConfigError: images that are not square, or no multiple of the patch.
    """
    height, width = image_size
    if height != width or height % sizes.patch_size:
        side = max(1, round(min(image_size) / sizes.patch_size)) * sizes.patch_size
        raise ConfigError(
            f"image size {height}x{width} must be square and a multiple of tiny.patch_size "
            f"{sizes.patch_size}; resize to {side}x{side}"
        )
    return {
        "projection_dim": sizes.hidden_size,
        "text_config": {
            "vocab_size": tokens.get_vocab_size(),
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.n_layers,
            "num_attention_heads": sizes.n_heads,
            "num_key_value_heads": sizes.n_kv_heads,
            "head_dim": sizes.head_dim,
            "initializer_range": sizes.init_std,
        },
        "vision_config": {
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.vision_intermediate,
            "num_hidden_layers": sizes.vision_depth,
            "num_attention_heads": sizes.vision_heads,
            "image_size": height,
            "patch_size": sizes.patch_size,
        },
    }


def named_shapes(config: PaliGemmaVLMConfig, tokens: Tokenizer, image_size: tuple[int, int]) -> Any:
    """A size of :attr:`PaliGemmaVLMConfig.SIZES` for the shipped tokenizer."""
    if config.base_vlm == "tiny":
        shapes = tiny_shapes(config.tiny, tokens, image_size)
    else:
        sizes = json.loads(files("vla_vlm").joinpath("assets", "sizes.json").read_text("utf-8"))
        shapes = sizes["paligemma"][config.base_vlm]
    pad, end, start, image = (tokens.token_to_id(text) for text in SPECIAL)
    assert image is not None
    shapes["text_config"].update(pad_token_id=pad, eos_token_id=end, bos_token_id=start)
    return _complete(
        PaliGemmaConfig(
            image_token_index=image,
            hidden_size=shapes["text_config"]["hidden_size"],
            vocab_size=shapes["text_config"]["vocab_size"],
            **shapes,
        )
    )


def hub_shapes(name: str) -> Any:
    """The config of a hub id or directory.

    Raises:
        ConfigError: not found, or of another architecture (PaliGemma 2 among them).
    """
    try:
        check_place(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    found = config.model_type
    if isinstance(config, PaliGemmaConfig):
        text: Any = config.text_config
        found = f"paligemma on {text.model_type}"
        if text.model_type == "gemma":
            return _complete(config)
    raise ConfigError(
        f"base_vlm '{name}' is a '{found}', not a 'paligemma on gemma'; name a PaliGemma model of the first "
        "generation (google/paligemma-3b-pt-224) or another vlm"
    )


def _complete(shapes: Any) -> Any:
    # Nobody reads the pooling head, and published weights have none.
    shapes.vision_config.vision_use_head = False
    return shapes


def _not_found(name: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0].rstrip(".")
    return ConfigError(
        f"base_vlm '{name}' can't be loaded ({reason}); give a local directory with config.json and "
        f"weights, a hub id while online, or one of {', '.join(PaliGemmaVLMConfig.SIZES)}"
    )


def random_model(shapes: Any, config: PaliGemmaVLMConfig, initialise: bool = True) -> Any:
    """A model of the given shapes; without ``initialise`` its weights hold garbage."""
    with contextlib.nullcontext() if initialise else initialization.no_init_weights():
        model = PaliGemmaModel._from_config(
            shapes,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
        )
    return _ready(model, config)


def pretrained_model(shapes: Any, config: PaliGemmaVLMConfig) -> Any:
    """The weights of a published checkpoint; its language head is the embedding.

    Raises:
        ConfigError: not found, or its weights are not those of the architecture.
    """
    try:
        loaded: Any = PaliGemmaForConditionalGeneration.from_pretrained(
            config.base_vlm,
            config=shapes,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_found(config.base_vlm, error) from error
    full, info = loaded
    check_loaded(config.base_vlm, info)
    return _ready(full.model, config)


def _ready(model: Any, config: PaliGemmaVLMConfig) -> Any:
    old = model.language_model.embed_tokens
    with torch.device("meta"):
        scaled = ScaledEmbedding(old.num_embeddings, old.embedding_dim, old.padding_idx)
    scaled.weight = old.weight
    model.language_model.embed_tokens = scaled
    own_tower(model.vision_tower)
    for layer in model.language_model.layers:
        retype(layer, PrefixLayer)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
