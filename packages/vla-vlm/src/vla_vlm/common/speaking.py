"""The language head of a backbone, and the tokens of an answer that it speaks through.

Shape legend: B rows, L answer ids, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.answers import AnswerIds

from vla_vlm.common.answers import AnswerTokens, add_tokens, grow
from vla_vlm.common.owned import LanguageHead, TiedEmbedding, retype


class Speaking(nn.Module, ABC):
    """A decoder that can learn and speak answers.

    Attributes:
        tokenizer: of the prompts.
        lm_head: once :meth:`add_head` needed one; None where the embedding serves as such.
        answers: once there are some.
    """

    tokenizer: Tokenizer

    def __init__(self) -> None:
        super().__init__()
        self.lm_head: LanguageHead | None
        self.register_module("lm_head", None)
        self.answers: AnswerTokens | None = None

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """transformers' decoder: ``embed_tokens``, ``layers``, ``norm``."""

    def make_head(self) -> LanguageHead | None:
        """The language head before any answer is added; None: the embedding's weight serves (it is tied)."""
        return None

    def add_head(self) -> None:
        """Have a language head, its own or the embedding."""
        if self.lm_head is None:
            self.lm_head = self.make_head()
        if self.lm_head is None:
            retype(self.language_model.embed_tokens, TiedEmbedding)

    def add_answers(self, answer_ids: AnswerIds) -> None:
        """See :class:`~vla_core.interfaces.AnsweringModel`.

        Tokens that the tokenizer lacks are appended to it, and as many rows to the embedding and, where it
        is not the same, to the language head: spare rows that a published model has stay spare.

        Raises:
            ConfigError: the tokenizer has the tokens out of order.
        """
        first, added = add_tokens(self.tokenizer, answer_ids.tokens)
        self.answers = AnswerTokens(first, len(answer_ids.tokens))
        self.add_head()
        if added:
            embed, config = self.language_model.embed_tokens, self.language_model.config
            rows = len(embed.weight) + added
            for module in (embed, self.lm_head):
                if module is not None:
                    grow(module, rows, first + self.answers.count - added, added, config.initializer_range)
            config.vocab_size = rows

    @property
    def answer_modules(self) -> list[str]:
        """Names of the modules that hold the rows of an answer's tokens; none without an answer."""
        if self.answers is None:
            return []
        holders = (self.language_model.embed_tokens, self.lm_head)
        return [name for name, module in self.named_modules() if any(module is holder for holder in holders)]

    def logits_of(self, hidden: Tensor, rows: slice) -> Tensor:
        """Logits of some tokens, through the head or the embedding that serves as one."""
        head = self.language_model.embed_tokens if self.lm_head is None else self.lm_head
        logits: Tensor = head(hidden, rows)
        return logits

    def read(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., n_ids]`` of the answer ids, and of no other token."""
        if self.answers is None:
            raise ValueError("this model knows no answer; call add_answers first (build_policy does)")
        first = self.answers.first
        return self.logits_of(hidden, slice(first, first + self.answers.count))
