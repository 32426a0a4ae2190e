"""FAST: the backbone speaks the actions (arXiv 2501.09747).

Shape legend: B rows, T action steps, A action dims, L answer ids, N ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.answers import NO_LABEL, Chunks
from vla_core.errors import ConfigError
from vla_core.features import ROWS
from vla_core.interfaces import HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest
from vla_core.shard import goes_on
from vla_core.traits import HeadTraits

from vla_heads.compat import choose
from vla_heads.fast.answer import FASTAnswer
from vla_heads.fast.config import FASTConfig
from vla_heads.fast.draw import gumbel, row_keys
from vla_heads.fast.grammar import Grammar
from vla_heads.fast.sampling import some
from vla_heads.fast.tokenizer import ActionTokenizer
from vla_heads.fast.transform import hold

ANSWER_FILE = "answer.json"
FITTED_ON = 10_000
"""Chunks a tokenizer is fitted to at most, drawn evenly; more change its byte pairs little."""


class FASTHead(nn.Module):
    """Actions are words of the backbone's vocabulary: no parameters here, T * A numbers in few tokens.

    Training is next-token prediction of a chunk's ids, among those ids alone, after the prompt. At
    inference the ids are spoken one by one, each among those that still let a whole chunk be said: what
    comes out always is one. ``noise`` only matters with a ``temperature``; ``time`` and ``steps`` never do.

    Cost: one pass over the prompt, and one token's pass through all layers for each id after the first.
    """

    Config: ClassVar[type] = FASTConfig
    traits: HeadTraits = HeadTraits()
    grammar: Grammar

    def __init__(self, config: FASTConfig, dims: HeadDims) -> None:
        super().__init__()
        if dims.context_dim:
            raise ConfigError(
                "head: fast cannot read the head context of this fusion; use a fusion that joins "
                "vision or language, or a head that reads it (layerwise_fm, groot_flow, adapter)"
            )
        self.config, self.dims = config, dims
        self.answer: FASTAnswer | None = None

    @classmethod
    def build(cls, config: FASTConfig, dims: HeadDims) -> FASTHead:
        """Build for a backbone and robot of the given sizes; :meth:`load_assets` comes next.

        With ``compat`` it is a head of another system.

        Raises:
            ConfigError: a fusion with head context, which this head cannot read.
        """
        head: FASTHead = choose("fast", config.compat, cls)(config, dims)
        return head

    @classmethod
    def fit(
        cls, config: FASTConfig, chunks: Chunks | None, horizon: int, action_dim: int, directory: Path
    ) -> None:
        """Take the tokenizer that the config names, or fit one to the training rows.

        Without either, a chunk is said byte by byte: enough to look at the policy, not to train it.

        Raises:
            ConfigError: no tokenizer there, or one that doesn't fit this policy.
        """
        t, a = horizon, action_dim
        kept = [] if chunks is None else some(_held(chunks, t, a), FITTED_ON)
        if config.tokenizer is not None:
            tokenizer = ActionTokenizer.load(Path(config.tokenizer), t, a)
        else:
            tokenizer = ActionTokenizer.fit(kept, t, a, config.vocab_size, config.scale)
        longest = max((len(tokenizer.encode(chunk)) for chunk in kept), default=0)
        _write(tokenizer, math.ceil(1.5 * longest) or 2 * t * a, directory)

    def save_assets(self, directory: Path) -> None:
        """The tokenizer, in the published format, and the room for an answer."""
        answer = self._spoken()
        _write(answer.tokenizer, answer.max_length, directory)

    def load_assets(self, directory: Path) -> None:
        """What :meth:`save_assets` wrote.

        Raises:
            ConfigError: it is missing or damaged, or made for another chunk.
        """
        tokenizer = ActionTokenizer.load(directory, self.dims.horizon, self.dims.action_dim)
        file = directory / ANSWER_FILE
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; the checkpoint is not whole, save it again")
        self._take(tokenizer, int(json.loads(file.read_text("utf-8"))["max_tokens"]))

    def _take(self, tokenizer: ActionTokenizer, room: int) -> None:
        grammar = Grammar(tokenizer.pieces, self.dims.horizon * self.dims.action_dim)
        limit = self.config.max_tokens
        room = max(room, grammar.shortest) if limit is None else limit
        if grammar.shortest > room:
            raise ConfigError(
                f"head.max_tokens: {limit} is too short, a chunk needs at least {grammar.shortest} tokens"
            )
        self.grammar, self.answer = grammar, FASTAnswer(tokenizer, room)

    def _spoken(self) -> FASTAnswer:
        assert self.answer is not None, "call load_assets first (build_policy does)"
        return self.answer

    @property
    def prompt(self) -> PromptSpec:
        """The answer, with nothing before it."""
        return PromptSpec(answer_ids=self._spoken())

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """Logits where the answer is written, or a decoder that speaks one."""
        if mode == "train":
            return VLMRequest(logits="labels")
        return VLMRequest(decoder=self._spoken().max_length)

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Cross-entropy an id, ``{"action_loss": scalar fp32}``; the answer was written at collate.

        ``actions`` and ``mask`` are not read: what the mask leaves out never was in the answer.
        """
        logits, labels = inputs.vlm.logits, inputs.vlm.labels
        assert logits is not None
        assert labels is not None
        spoken = labels != NO_LABEL
        total = F.cross_entropy(
            logits.float().flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        terms = {"action_loss": total / spoken.sum().clamp(min=1)}
        if inputs.rows:
            with torch.no_grad():
                each = F.cross_entropy(
                    logits.float().transpose(1, -1), labels, ignore_index=NO_LABEL, reduction="none"
                )
            terms[ROWS] = torch.stack([each.sum(1), spoken.sum(1).float()], dim=1)
        return terms

    def sample(self, inputs: HeadInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """Normalised actions ``[B, T, A]``; ``noise`` seeds the words drawn with a temperature."""
        ids_BL = self.speak(inputs, noise).cpu()
        tokenizer = self._spoken().tokenizer
        chunks = [tokenizer.decode([i for i in row if i >= 0]) for row in ids_BL.tolist()]
        return torch.from_numpy(np.stack(chunks)).to(noise.device)

    def speak(self, inputs: HeadInputs, noise: Tensor) -> Tensor:
        """Ids ``[B, L]`` of a whole chunk a row, then -1."""
        decoder, room = inputs.vlm.decoder, self._spoken().max_length
        assert decoder is not None
        keys = row_keys(noise) if self.config.temperature else None
        said, logits = self.grammar.start(len(noise)), decoder.logits
        words = []
        for i in range(room):
            scores = logits.double()
            if keys is not None:
                scores = scores / self.config.temperature + gumbel(keys, i, scores.shape[1])
            allowed = self.grammar.allowed(said, room - i)
            ids = scores.masked_fill(~allowed, -torch.inf).argmax(dim=1)
            words.append(torch.where(said.missing > 0, ids, -1))
            said = self.grammar.after(said, ids)
            # Only where a chunk can be whole does the host look whether all are.
            if i + 1 == room:
                break
            if i + 1 >= self.grammar.shortest and not goes_on(bool((said.missing > 0).any())):
                break
            logits = decoder.step(ids)
        return torch.stack(words, dim=1)


def _held(
    chunks: Chunks, horizon: int, action_dim: int
) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    for actions, mask in chunks():
        if mask.any():
            yield hold(actions, mask, horizon, action_dim)


def _write(tokenizer: ActionTokenizer, max_tokens: int, directory: Path) -> None:
    tokenizer.save(directory)
    (directory / ANSWER_FILE).write_text(json.dumps({"max_tokens": max_tokens}) + "\n")
