"""What head and fusion want of the backbone: text and reserved ids in the prompt, and what to compute.

Shape legend: H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vla_core.answers import AnswerIds


@dataclass(frozen=True)
class PromptSpec:
    """What head and fusion want in the prompt; two specs unite with ``|``.

    Args:
        suffix: text after the instruction.
        n_query: number of reserved query ids (after the suffix), overwritten by learned embeddings.
        n_prefix: number of reserved ids before the images, overwritten by a fusion's tokens.
        answer_ids: the answer after the prompt: written at collate in training, spoken at inference.
        closing: text after an answer, special tokens by name; written at collate in training, for a head
            that learns it too (``VLMRequest.logits``: ``vocabulary``). Never spoken.
    """

    suffix: str = ""
    n_query: int = 0
    n_prefix: int = 0
    answer_ids: AnswerIds | None = None
    closing: str = ""

    def __or__(self, other: PromptSpec) -> PromptSpec:
        if self.answer_ids is not None and other.answer_ids is not None:
            raise ValueError("head and fusion both bring answer ids; only one may")
        return PromptSpec(
            suffix=self.suffix + other.suffix,
            n_query=self.n_query + other.n_query,
            n_prefix=self.n_prefix + other.n_prefix,
            answer_ids=self.answer_ids if self.answer_ids is not None else other.answer_ids,
            closing=self.closing + other.closing,
        )


@dataclass(frozen=True)
class VLMRequest:
    """What the backbone must compute; it computes nothing more. Requests unite with ``|``.

    Args:
        layers: indices into the hidden states: 0 is the embeddings, i the output of decoder layer
            i, ``n_layers`` the last layer's output after the final norm (as in transformers).
            Layers above the highest requested one are not run.
        queries: embedding of the query tokens, ``weight [n_query, H]``, or None.
        logits: ``labels`` asks for the logits of the answer ids where the labels are, and nowhere else;
            ``vocabulary`` for those of all tokens, where an answer or its closing is predicted.
        decoder: how many answer ids the head will speak at most; 0: it needs no decoder.
        kv: decoder layers (1 is the first) whose keys and values are wanted, for a head whose own
            tokens join the backbone's attention. A backbone that serves them says so in ``VLMDims.kv``.
    """

    layers: tuple[int, ...] = ()
    queries: nn.Embedding | None = None
    logits: Literal["none", "labels", "vocabulary"] = "none"
    decoder: int = 0
    kv: tuple[int, ...] = ()

    def __or__(self, other: VLMRequest) -> VLMRequest:
        if None not in (self.queries, other.queries) and self.queries is not other.queries:
            raise ValueError("head and fusion both bring query embeddings; only one may")
        return VLMRequest(
            layers=tuple(sorted({*self.layers, *other.layers})),
            queries=self.queries if self.queries is not None else other.queries,
            logits=self.logits if self.logits != "none" else other.logits,
            decoder=max(self.decoder, other.decoder),
            kv=tuple(sorted({*self.kv, *other.kv})),
        )
