"""Where a tokenizer comes from, as ``tokenizers.Tokenizer``, and the ids a collator writes itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Lock

from tokenizers import Tokenizer
from vla_core.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
ENCODING = Lock()
"""Held while a tokenizer encodes: it cannot be set by one thread while another one encodes."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens the collator writes itself; None where a model has no such token.

    ``image``, ``prefix`` and ``query`` are reserved: their embeddings are always overwritten, and no
    text ever uses them.
    """

    pad: int
    image: int
    prefix: int
    query: int
    bos: int | None = None
    vision_start: int | None = None
    vision_end: int | None = None


def shipped() -> Tokenizer:
    """The small byte-level BPE of this package."""
    return Tokenizer.from_str(files("vla_vlm").joinpath("assets", TOKENIZER_FILE).read_text("utf-8"))


def from_directory(directory: Path) -> Tokenizer:
    """The tokenizer that ``save_assets`` wrote."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the checkpoint lacks its tokenizer, save it again")
    return Tokenizer.from_file(str(path))


def published(name: str) -> Tokenizer:
    """A directory's ``tokenizer.json``, else :func:`from_pretrained`, which must know the model beside it."""
    path = Path(name) / TOKENIZER_FILE
    return Tokenizer.from_file(str(path)) if path.is_file() else from_pretrained(name)


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
