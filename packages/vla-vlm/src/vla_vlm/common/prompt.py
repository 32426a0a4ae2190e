"""The prompt template: chat text with placeholders, split once into pieces.

Only the template is searched for special tokens and placeholders. An instruction is always plain
text: ``<|image_pad|>`` or ``{images}`` inside it can't change the layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vla_core.errors import ConfigError, suggest

PLACEHOLDERS = ("prefix", "images", "instruction", "suffix", "queries")
_ORDER = "the order is {prefix} {images} {instruction} {suffix} {queries}"


@dataclass(frozen=True)
class Template:
    """The prompt as a list of pieces.

    Args:
        pieces: literal text, or one of :data:`PLACEHOLDERS` marked by ``is_slot``.
        is_slot: whether the piece of the same index is a placeholder.
    """

    pieces: tuple[str, ...]
    is_slot: tuple[bool, ...]

    @classmethod
    def parse(cls, prompt: str, cot_prompt: str = "{instruction}") -> Template:
        """Split ``prompt``, with ``cot_prompt`` in place of its instruction.

        Raises:
            ConfigError: a placeholder is unknown, missing, repeated or out of order.
        """
        found = re.findall(r"\{(\w+)\}", cot_prompt)
        if found != ["instruction"]:
            raise ConfigError(
                f"cot_prompt must contain {{instruction}} once and no other placeholder, got {cot_prompt!r}"
            )
        found = re.findall(r"\{(\w+)\}", prompt)
        for name in found:
            if name not in PLACEHOLDERS:
                raise ConfigError(f"prompt: unknown placeholder {{{name}}}{suggest(name, PLACEHOLDERS)}")
        if tuple(found) != PLACEHOLDERS:
            raise ConfigError(f"prompt must have each placeholder once; {_ORDER}, got {found}")
        parts = re.split(r"\{(\w+)\}", prompt.replace("{instruction}", cot_prompt))
        kept = [(text, i % 2 == 1) for i, text in enumerate(parts) if text]
        return cls(tuple(text for text, _ in kept), tuple(slot for _, slot in kept))
