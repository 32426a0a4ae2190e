"""The prompt template: chat text with placeholders, split once into pieces.

Only the template is searched for special tokens and placeholders. An instruction is always plain
text: ``<|image_pad|>`` or ``{images}`` inside it can't change the layout.

``{state}`` may stand anywhere in it: the robot's normalised state as text (:func:`state_text`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError, suggest

PLACEHOLDERS = ("prefix", "images", "instruction", "suffix", "queries")
INSTRUCTED = ("prefix", "instruction", "images", "suffix", "queries")
"""The other order: with causal attention every image token has read what the robot was told."""
_ORDER = (
    "the order is {prefix} {images} {instruction} {suffix} {queries}, {instruction} may come "
    "before {images}, and {state} is anywhere or not at all"
)
STATE = "state"
STATE_BINS = 256
Whitespace: TypeAlias = Literal["keep", "strip", "collapse"]


@dataclass(frozen=True)
class Template:
    """The prompt as a list of pieces.

    Args:
        pieces: literal text, or one of :data:`PLACEHOLDERS` or :data:`STATE`, marked by ``is_slot``.
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
        if [name for name in found if name != STATE] != ["instruction"]:
            raise ConfigError(
                "cot_prompt must contain {instruction} once and no other placeholder but {state}, "
                f"got {cot_prompt!r}"
            )
        found = re.findall(r"\{(\w+)\}", prompt)
        known = (*PLACEHOLDERS, STATE)
        for name in found:
            if name not in known:
                raise ConfigError(f"prompt: unknown placeholder {{{name}}}{suggest(name, known)}")
        if tuple(name for name in found if name != STATE) not in (PLACEHOLDERS, INSTRUCTED):
            raise ConfigError(f"prompt must have each placeholder once; {_ORDER}, got {found}")
        text = prompt.replace("{instruction}", cot_prompt)
        if text.count(f"{{{STATE}}}") > 1:
            raise ConfigError("prompt and cot_prompt may have {state} once between them")
        parts = re.split(r"\{(\w+)\}", text)
        kept = [(text, i % 2 == 1) for i, text in enumerate(parts) if text]
        return cls(tuple(text for text, _ in kept), tuple(slot for _, slot in kept))

    @property
    def reads_state(self) -> bool:
        """Whether the prompt has the state in it."""
        return any(slot and piece == STATE for piece, slot in zip(self.pieces, self.is_slot, strict=True))


def state_text(state: NDArray[np.float32]) -> str:
    """A normalised state ``[D]`` as words, e.g. ``12 255 128`` (pi0.5, arXiv 2504.16054).

    Each dim is the number of its bin out of 256 equal ones over [-1, 1], 0 to 255; 255 also stands for
    all above and -1 for all below, as the published models saw it.
    """
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return " ".join(str(number) for number in np.digitize(state, edges) - 1)
