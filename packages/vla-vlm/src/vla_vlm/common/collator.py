"""Instructions to :class:`TokenFields`: picklable, without weights, the same in workers and server.

Everything in a row but instruction and state is fixed by the build, so without ``{state}`` a row is made
once per distinct instruction and then copied. Shapes are static: S = max_text_tokens + image + prefix +
query tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from vla_core.answers import NO_LABEL
from vla_core.batch import Role, TokenFields
from vla_core.errors import UserError
from vla_core.interfaces import PromptSpec
from vla_core.types import Observation, Sample

from vla_vlm.common.positions import Positions
from vla_vlm.common.prompt import STATE, Template, Whitespace, state_text
from vla_vlm.common.tokenizer import ENCODING, SpecialIds

_CACHED_ROWS = 4096


class _Slot(Enum):
    """What differs between samples inside a run of text."""

    INSTRUCTION = auto()
    STATE = auto()


_Run: TypeAlias = list[str | _Slot]


@dataclass(frozen=True)
class _Row:
    ids: NDArray[np.int64]
    roles: NDArray[np.uint8]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class PromptCollator:
    """Writes prompts of one :class:`PromptSpec`.

    Args:
        tokenizer: without weights; its special tokens are looked for in the template only.
        special: ids of the tokens written here.
        template: the text of the prompt; a ``special.bos`` goes before it.
        prompt: suffix, number of query and prefix tokens.
        n_views: images per row.
        grid: (h, w) tokens of an image.
        max_text_tokens: room for everything but image, prefix and query tokens.
        padding: ``right`` or ``left``.
        positions: of the tokens of a row.
        first_answer: token of answer id 0, where the prompt has an answer.
        closing: tokens of ``prompt.closing``.
        whitespace: of an instruction: ``keep``, ``strip`` at its ends, ``collapse`` to single spaces as well.
    """

    tokenizer: Tokenizer
    special: SpecialIds
    template: Template
    prompt: PromptSpec
    n_views: int
    grid: tuple[int, int]
    max_text_tokens: int
    padding: str
    positions: Positions
    first_answer: int | None = None
    closing: tuple[int, ...] = ()
    whitespace: Whitespace = "keep"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # The cache stays behind; the layout is made again.
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @cached_property
    def _rows(self) -> dict[str, _Row]:
        return {}

    @cached_property
    def _layout(self) -> list[_Run | tuple[list[int], list[int]]]:
        return self._make_layout()

    @property
    def counts(self) -> dict[str, int]:
        """Reserved tokens in every row, by role name."""
        return {
            "image": self.n_views * self.grid[0] * self.grid[1],
            "prefix": self.prompt.n_prefix,
            "query": self.prompt.n_query,
        }

    @property
    def length(self) -> int:
        """S without an answer, the same for every batch."""
        return self.max_text_tokens + sum(self.counts.values())

    def __call__(self, samples: Sequence[Sample], answers: bool = False) -> TokenFields:
        """Token fields of a batch; ``answers`` writes the samples' answers after their prompts, with labels.

        Raises:
            UserError: an instruction or answer doesn't fit, or the prompt wants a state and there is none.
        """
        b, s = len(samples), self.length
        rows = [self._row(sample.observation) for sample in samples]
        labels = None
        if answers:
            assert self.prompt.answer_ids is not None
            room = self.prompt.answer_ids.max_length
            labels = np.full((b, room), NO_LABEL, np.int64)
            s += room + len(self.closing)
            for i, sample in enumerate(samples):
                answer = np.asarray(self.prompt.answer_ids(sample.actions, sample.action_mask), np.int64)
                labels[i, : len(answer)] = answer
                rows[i] = self._with_answer(rows[i], answer)
        ids = np.full((b, s), self.special.pad, np.int64)
        roles = np.full((b, s), int(Role.PAD), np.uint8)
        mask = np.zeros((b, s), np.bool_)
        positions = np.zeros((len(rows[0].positions), b, s), np.int64)
        for i, row in enumerate(rows):
            n = len(row.ids)
            at = slice(0, n) if self.padding == "right" else slice(s - n, s)
            ids[i, at], roles[i, at], positions[:, i, at], mask[i, at] = (
                row.ids,
                row.roles,
                row.positions,
                True,
            )
        return TokenFields(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            roles=torch.from_numpy(roles),
            position_ids=torch.from_numpy(positions),
            counts=self.counts,
            right_padded=self.padding == "right",
            labels=None if labels is None else torch.from_numpy(labels),
            n_answer=int((roles == int(Role.ANSWER)).sum()),
        )

    def _with_answer(self, row: _Row, answer: NDArray[np.int64]) -> _Row:
        """The row with its answer and what closes it, going on where the prompt's positions end."""
        assert self.first_answer is not None, "the model must know the answer's tokens (add_answers)"
        # A row without an answer has nothing to close.
        closing = np.array(self.closing if len(answer) else (), np.int64)
        said = np.concatenate([self.first_answer + answer, closing])
        after = np.arange(len(said)) + int(row.positions.max()) + 1
        return _Row(
            np.concatenate([row.ids, said]),
            np.concatenate([row.roles, np.full(len(said), int(Role.ANSWER), np.uint8)]),
            np.concatenate([row.positions, np.tile(after, (len(row.positions), 1))], axis=1),
        )

    def _row(self, observation: Observation) -> _Row:
        instruction = observation.instruction
        if self.whitespace != "keep":
            instruction = instruction.strip()
        if self.whitespace == "collapse":
            instruction = " ".join(instruction.split())
        if self.template.reads_state:
            # No two are alike: nothing to keep.
            if observation.state is None:
                raise UserError("vlm.prompt has {state}, and this robot has none; take it out of the prompt")
            return self._make_row(instruction, state_text(observation.state))
        rows = self._rows
        row = rows.get(instruction)
        if row is None:
            row = self._make_row(instruction)
            if len(rows) >= _CACHED_ROWS:
                rows.clear()
            rows[instruction] = row
        return row

    def _make_row(self, instruction: str, state: str = "") -> _Row:
        ids: list[int] = []
        roles: list[int] = []
        for item in self._layout:
            if isinstance(item, tuple):
                new_ids, new_roles = item
            else:
                new_ids, new_roles = self._encode(item, instruction, state)
            ids += new_ids
            roles += new_roles
        n_text = len(ids) - sum(self.counts.values())
        if n_text > self.max_text_tokens:
            shown = instruction if len(instruction) <= 60 else instruction[:57] + "..."
            raise UserError(
                f"instruction {shown!r} makes a prompt of {n_text} text tokens, more than "
                f"vlm.max_text_tokens = {self.max_text_tokens}; raise it or shorten the instruction"
            )
        array = np.array(roles, np.uint8)
        positions = self.positions(array == int(Role.IMAGE), self.grid)
        return _Row(np.array(ids, np.int64), array, positions)

    def _encode(self, run: _Run, instruction: str, state: str) -> tuple[list[int], list[int]]:
        # The run is tokenised as one text, as the published model saw it: merges may cross the
        # instruction's ends, so a token counts as instruction when it overlaps the instruction.
        text, start, end = "", 0, 0
        for part in run:
            if part is _Slot.INSTRUCTION:
                start, end = len(text), len(text) + len(instruction)
                text += instruction
            else:
                text += state if part is _Slot.STATE else part
        # A server prepares in several threads, and the tokenizer cannot be set while another one encodes.
        with ENCODING:
            self.tokenizer.encode_special_tokens = True  # specials in an instruction are plain text
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        roles = [
            int(Role.INSTRUCTION) if a < end and b > start else int(Role.TEXT) for a, b in encoding.offsets
        ]
        return list(encoding.ids), roles

    def _make_layout(self) -> list[_Run | tuple[list[int], list[int]]]:
        """Fixed ids with roles, and the runs of text that have yet to be tokenised."""
        added = self.tokenizer.get_added_tokens_decoder()
        specials = {token.content: number for number, token in added.items() if token.special}
        pattern = re.compile("(" + "|".join(re.escape(s) for s in specials) + ")")
        layout: list[_Run | tuple[list[int], list[int]]] = []

        def reserve(ids: list[int], roles: list[Role]) -> None:
            layout.append((ids, [int(role) for role in roles]))

        def add(part: str | _Slot) -> None:
            if not layout or isinstance(layout[-1], tuple):
                layout.append([])
            run = layout[-1]
            assert isinstance(run, list)
            run.append(part)

        def literal(text: str) -> None:
            for part in pattern.split(text):
                if part in specials:
                    reserve([specials[part]], [Role.TEXT])
                elif part:
                    add(part)

        special, n_tokens = self.special, self.grid[0] * self.grid[1]
        before, after = ([] if i is None else [i] for i in (special.vision_start, special.vision_end))
        if special.bos is not None:
            reserve([special.bos], [Role.TEXT])
        for piece, is_slot in zip(self.template.pieces, self.template.is_slot, strict=True):
            if not is_slot:
                literal(piece)
            elif piece == "prefix" and self.prompt.n_prefix:
                reserve([special.prefix] * self.prompt.n_prefix, [Role.PREFIX] * self.prompt.n_prefix)
            elif piece == "images":
                for _ in range(self.n_views):
                    reserve(before, [Role.TEXT] * len(before))
                    reserve([special.image] * n_tokens, [Role.IMAGE] * n_tokens)
                    reserve(after, [Role.TEXT] * len(after))
            elif piece == "instruction":
                add(_Slot.INSTRUCTION)
            elif piece == STATE:
                add(_Slot.STATE)
            elif piece == "suffix":
                suffix = self.prompt.suffix
                # "... drawer" + "Please predict" must not become one word.
                literal(f" {suffix}" if suffix[:1].isalnum() else suffix)
            elif piece == "queries" and self.prompt.n_query:
                reserve([special.query] * self.prompt.n_query, [Role.QUERY] * self.prompt.n_query)
        return layout
