"""The ids of Qwen's special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer
from vla_core.errors import ConfigError

from vla_vlm.common.tokenizer import SpecialIds

_SPECIAL = {
    "pad": "<|endoftext|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    # Reserved ids whose embeddings are always overwritten; no text and no image ever uses them.
    "prefix": "<|vision_pad|>",
    "query": "<|video_pad|>",
}


def special_ids(tokenizer: Tokenizer, where: str) -> SpecialIds:
    """Look the special tokens up; ``where`` names the tokenizer in the error."""
    ids: dict[str, int] = {}
    missing: list[str] = []
    for name, token in _SPECIAL.items():
        number = tokenizer.token_to_id(token)
        if number is None:
            missing.append(token)
        else:
            ids[name] = number
    if missing:
        raise ConfigError(
            f"tokenizer of '{where}' lacks {', '.join(missing)}; use the tokenizer of a Qwen-VL model"
        )
    return SpecialIds(**ids)
