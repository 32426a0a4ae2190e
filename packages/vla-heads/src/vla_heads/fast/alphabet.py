"""Characters, their bytes, and the printable characters that byte-level BPE writes bytes as.

Code n is the character ``chr(n)``: one byte in UTF-8 below 128, two below :data:`CODES`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

CODES = 2048
"""Codes are below this; no chunk of normalised actions needs more, and all are one or two bytes."""


def _printable() -> dict[str, int]:
    """GPT-2's names of the 256 bytes: printable ones are themselves, the rest is moved up by 256."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    names = {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}
    assert sorted(names) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return names


BYTES = _printable()


def piece_bytes(piece: str) -> bytes:
    """The bytes that a token is decoded to: byte by byte, or as it stands if it is not written that way."""
    if all(name in BYTES for name in piece):
        return bytes(BYTES[name] for name in piece)
    return piece.encode("utf-8")


def codes_of(text: bytes) -> NDArray[np.int64] | None:
    """The codes that ``text`` spells, or None if it spells none or other characters."""
    try:
        codes = np.array([ord(c) for c in text.decode("utf-8")], np.int64)
    except UnicodeDecodeError:
        return None
    return codes if (codes < CODES).all() else None


def known_codes(bpe: Tokenizer) -> NDArray[np.int64]:
    """The nearest code ``[CODES]`` that ``bpe`` can spell, for each code.

    A BPE leaves out bytes it has no token for. One that was fitted elsewhere may lack some.
    """
    names = {byte: name for name, byte in BYTES.items()}
    known = {byte for byte in range(256) if bpe.token_to_id(names[byte]) is not None}
    codes = np.array([n for n in range(CODES) if set(chr(n).encode("utf-8")) <= known], np.int64)
    assert len(codes), "a byte-level BPE has tokens of single bytes"
    return codes[np.abs(codes - np.arange(CODES)[:, None]).argmin(axis=1)]
