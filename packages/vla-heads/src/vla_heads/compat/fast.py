"""``compat: starvla`` of ``fast``: the answer is learned as StarVLA learns it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vla_core.interfaces import PromptSpec, VLMRequest

from vla_heads.fast.head import FASTHead

CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
"""StarVLA writes the answer as a finished turn and opens another, and learns all that follows the answer."""


class StarVLAFAST(FASTHead):
    """Cross-entropy a token, of the answer and of what closes it, over the whole vocabulary."""

    @property
    def prompt(self) -> PromptSpec:
        """The answer and what closes it."""
        return replace(super().prompt, closing=CLOSING)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """See the base; logits over the vocabulary."""
        return VLMRequest(logits="vocabulary") if mode == "train" else super().request(mode)
