"""Conversations to tokens in Qwen's chat format, several in a row where they fit.

A turn is ``<|im_start|>``, role, newline, text, ``<|im_end|>``, newline; an image at its mark is
``<|vision_start|>...<|vision_end|>``. Learned is what an assistant says with the ``<|im_end|>`` that ends it,
in every turn. Text never becomes a special token, whatever it spells. All images get the model's one size, so
boxes hold as shares of the image.

R rows, S tokens, M images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from vla_core.batch import ConversationBatch, Role, TokenFields
from vla_core.conversations import IMAGE_MARK, Conversation, Turn, check_turns
from vla_core.errors import ConfigError, UserError
from vla_core.images import resize
from vla_core.types import Image

from vla_vlm.common.tokenizer import ENCODING, SpecialIds
from vla_vlm.qwen.positions import mrope_positions

LENGTHS = 64
"""Rows are as long as a multiple of this, so that there are few different shapes."""


@dataclass(frozen=True)
class ChatIds:
    """Ids of the tokens around a turn."""

    start: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, where: str) -> ChatIds:
        """Look them up; ``where`` names the tokenizer.

        Raises:
            ConfigError: it has none.
        """
        start, end = (tokenizer.token_to_id(f"<|im_{name}|>") for name in ("start", "end"))
        if start is None or end is None:
            raise ConfigError(
                f"tokenizer of '{where}' lacks <|im_start|> or <|im_end|>; use that of a Qwen-VL model"
            )
        return cls(start, end)


@dataclass
class _Written:
    """A conversation in tokens."""

    ids: list[int] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], roles: Role | Sequence[int]) -> None:
        self.ids += ids
        self.roles += [int(roles)] * len(ids) if isinstance(roles, Role) else roles


@dataclass
class _Row:
    """Conversations that share a row; ``members`` are their numbers in the batch."""

    members: list[int] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True)
class ChatCollator:
    """Writes conversations; picklable and weightless.

    Args:
        tokenizer: without weights.
        special, chat: ids of the tokens written here.
        system: what the system says where a conversation has no such turn; empty: nothing.
        grid: (h, w) tokens of an image.
        image_size: (height, width) that every image is resized to.
        max_tokens: of a row.
        pack: put several conversations into a row; else each has its own.
    """

    tokenizer: Tokenizer
    special: SpecialIds
    chat: ChatIds
    system: str
    grid: tuple[int, int]
    image_size: tuple[int, int]
    max_tokens: int
    pack: bool

    def __call__(self, conversations: Sequence[Conversation]) -> ConversationBatch:
        """A batch; the same conversations always make the same one.

        Raises:
            UserError: a conversation that is not whole or longer than a row.
        """
        written = [self._write(one) for one in conversations]
        rows = self._rows([len(one.ids) for one in written])
        s = max(row.length for row in rows)
        s = min(self.max_tokens, -(-s // LENGTHS) * LENGTHS)
        ids = np.full((len(rows), s), self.special.pad, np.int64)
        roles = np.full(ids.shape, int(Role.PAD), np.uint8)
        segments = np.zeros(ids.shape, np.int64)
        positions = np.zeros((3, *ids.shape), np.int64)
        images: list[Image] = []
        for r, row in enumerate(rows):
            at = 0
            for number, i in enumerate(row.members, 1):
                one, here = written[i], slice(at, at + len(written[i].ids))
                ids[r, here], roles[r, here], segments[r, here] = one.ids, one.roles, number
                is_image = np.array(one.roles, np.uint8) == int(Role.IMAGE)
                positions[:, r, here] = mrope_positions(is_image, self.grid)
                images += conversations[i].images
                at = here.stop
        tokens = TokenFields(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(segments > 0),
            roles=torch.from_numpy(roles),
            position_ids=torch.from_numpy(positions),
            right_padded=True,
            all_views=True,
            n_answer=int((roles == int(Role.ANSWER)).sum()),
        )
        return ConversationBatch(
            images=torch.from_numpy(self._pixels(images)),
            tokens=tokens,
            segment_ids=torch.from_numpy(segments),
            n_conversations=len(conversations),
            n_images=len(images),
            packed=any(len(row.members) > 1 for row in rows),
        )

    def _rows(self, lengths: Sequence[int]) -> list[_Row]:
        """Each conversation in the first row that has room for it."""
        rows: list[_Row] = []
        for i, length in enumerate(lengths):
            fits = (row for row in rows if self.pack and row.length + length <= self.max_tokens)
            row = next(fits, None)
            if row is None:
                row = _Row()
                rows.append(row)
            row.members.append(i)
            row.length += length
        return rows

    def _pixels(self, images: Sequence[Image]) -> NDArray[np.uint8]:
        height, width = self.image_size
        out = np.zeros((max(1, len(images)), 3, height, width), np.uint8)
        for i, image in enumerate(images):
            out[i] = resize(image, height, width, "bicubic").transpose(2, 0, 1)
        return out

    def _write(self, conversation: Conversation) -> _Written:
        wrong = check_turns(conversation.turns, len(conversation.images))
        if wrong is not None:
            raise UserError(f"{conversation.where}: {wrong}")
        turns = conversation.turns
        if self.system and turns[0].role != "system":
            turns = (Turn("system", self.system), *turns)
        out = _Written()
        for turn in turns:
            self._turn(turn, out)
        if len(out.ids) > self.max_tokens:
            n = len(conversation.images)
            raise UserError(
                f"{conversation.where}: {len(out.ids)} tokens, with {n} image{'' if n == 1 else 's'}, are "
                f"more than datasets.vlm.max_tokens = {self.max_tokens}; raise it or split the conversation"
            )
        return out

    def _turn(self, turn: Turn, out: _Written) -> None:
        out.add([self.chat.start], Role.TEXT)
        header, learned = f"{turn.role}\n", turn.role == "assistant"
        pieces = turn.text.split(IMAGE_MARK) if turn.role == "user" else [turn.text]
        pieces = pieces if learned else [piece.strip() for piece in pieces]
        # A token belongs to the answer if some of it does: merges may cross the end of the header.
        out.add(*self._encode(header + pieces[0], len(header) if learned else None))
        for piece in pieces[1:]:
            assert self.special.vision_start is not None
            assert self.special.vision_end is not None
            out.add([self.special.vision_start], Role.TEXT)
            out.add([self.special.image] * (self.grid[0] * self.grid[1]), Role.IMAGE)
            out.add([self.special.vision_end], Role.TEXT)
            out.add(*self._encode(piece, None))
        out.add([self.chat.end], Role.ANSWER if learned else Role.TEXT)
        out.add(*self._encode("\n", None))

    def _encode(self, text: str, learned_from: int | None) -> tuple[list[int], list[int]]:
        """Ids and roles of a text between special tokens, learned from a character on (None: not at all)."""
        with ENCODING:
            self.tokenizer.encode_special_tokens = True  # specials in a text are plain text
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        first = len(text) if learned_from is None else learned_from
        roles = [int(Role.ANSWER) if end > first else int(Role.TEXT) for _, end in encoding.offsets]
        return list(encoding.ids), roles
