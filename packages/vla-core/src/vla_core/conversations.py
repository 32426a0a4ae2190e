"""Conversations about images, on which a backbone is trained alone or beside a robot's data.

Raw and model-agnostic: no tokens, no chat format, images as they are stored. Sources of them are entry points
``vla.conversations``. Shapes: H, W image size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from vla_core.types import Image

IMAGE_MARK = "<image>"
"""Where an image stands in a user's turn; the images of a conversation are used up in order."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: ``system`` may only come first; what the ``assistant`` says is learned.
        text: with an :data:`IMAGE_MARK` for each image, in a user's turn. Boxes and points are text like any
            other.
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Conversation:
    """One training example of a backbone.

    Args:
        turns: in order.
        images: uint8 RGB ``[H, W, 3]``, as many as there are marks in the user's turns.
        where: file and entry, for errors.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    where: str = "conversation"


class ConversationSource(Protocol):
    """Random access to conversations. Entry points ``vla.conversations``.

    ``Config`` is the YAML node. ``__init__(config)`` reads what is said, and raises
    :class:`~vla_core.errors.UserError` for an entry that is not whole; images are opened one by one later.
    """

    Config: ClassVar[type]

    def __init__(self, config: Any) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


def check_turns(turns: Sequence[Turn], n_images: int) -> str | None:
    """What is wrong with a conversation, in words; None: nothing."""
    if any(turn.role == "system" for turn in turns[1:]):
        return "a system turn must come first"
    spoken = [turn for turn in turns if turn.role != "system"]
    if not spoken or spoken[0].role != "user":
        return "the first turn must be the user's ('human')"
    if not any(turn.role == "assistant" and turn.text.strip() for turn in spoken):
        return "the assistant says nothing, so there is nothing to learn"
    marks = sum(turn.text.count(IMAGE_MARK) for turn in spoken if turn.role == "user")
    if marks != n_images:
        less = "no" if marks == 0 else str(marks)
        return f"{less} {IMAGE_MARK} in the user's turns, and {n_images or 'no'} image{'s' * (n_images != 1)}"
    return None
