"""The tokenizer as ``tokenizers.Tokenizer`` and the ids of Qwen's special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tokenizers import Tokenizer
from vla_core.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = {
    "pad": "<|endoftext|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    # Reserved ids whose embeddings are always overwritten; no text and no image ever uses them.
    "prefix": "<|vision_pad|>",
    "query": "<|video_pad|>",
}


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens the collator writes itself."""

    pad: int
    vision_start: int
    vision_end: int
    image: int
    prefix: int
    query: int


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


def shipped() -> Tokenizer:
    """The small byte-level BPE of this package."""
    return Tokenizer.from_str(files("vla_vlm").joinpath("assets", TOKENIZER_FILE).read_text("utf-8"))


def from_directory(directory: Path) -> Tokenizer:
    """The tokenizer that ``save_assets`` wrote."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the checkpoint lacks its tokenizer, save it again")
    return Tokenizer.from_file(str(path))


def from_pretrained(name: str) -> Tokenizer:
    """The tokenizer of a hub id or local model directory."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name).backend_tokenizer
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"base_vlm '{name}': no tokenizer found ({str(error).splitlines()[0]}); "
            "put tokenizer.json into the directory, or use base_vlm: tiny"
        ) from error
