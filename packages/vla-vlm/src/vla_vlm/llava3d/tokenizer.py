"""The reserved tokens, added to a Llama or Mistral tokenizer, and its ids that the collator writes."""

from __future__ import annotations

from tokenizers import Tokenizer
from vla_core.errors import ConfigError

from vla_vlm.common.answers import add_tokens
from vla_vlm.common.tokenizer import SpecialIds
from vla_vlm.llava3d.config import IMAGE_TOKEN

RESERVED = (IMAGE_TOKEN, "<prefix>", "<query>")
# What is there pads; nobody attends to it. LLaVA pads with <unk>.
_PAD = ("<|endoftext|>", "<pad>", "<unk>", "</s>")


def add_reserved(tokens: Tokenizer, where: str) -> SpecialIds:
    """Add to ``tokens`` what it lacks of the reserved tokens, as real tokens with rows of their own.

    Raises:
        ConfigError: nothing to pad with; ``where`` names the tokenizer.
    """
    for text in RESERVED:
        add_tokens(tokens, [text])
    image, prefix, query = (tokens.token_to_id(text) for text in RESERVED)
    pad = next((number for text in _PAD if (number := tokens.token_to_id(text)) is not None), None)
    if pad is None:
        raise ConfigError(f"tokenizer of '{where}' has none of {', '.join(_PAD)} to pad with")
    assert image is not None
    assert prefix is not None
    assert query is not None
    return SpecialIds(pad=pad, image=image, prefix=prefix, query=query, bos=tokens.token_to_id("<s>"))
