"""What a backbone learns from conversations: the loss, and which backbones can."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vla_core.batch import ConversationBatch
from vla_core.errors import ConfigError
from vla_core.interfaces import ConversingModel

CONVERSATION_LOSS = "vlm_loss"
"""Name of the loss term."""


def check_converses(vlm: Any, name: str) -> ConversingModel:
    """``vlm``, if it can be trained on conversations.

    Raises:
        ConfigError: naming those that can.
    """
    if not isinstance(vlm, ConversingModel):
        raise cannot_converse(name)
    return vlm


def cannot_converse(name: str) -> ConfigError:
    """The error for a backbone that cannot be trained on conversations."""
    return ConfigError(
        f"framework.vlm: '{name}' cannot be trained on conversations (datasets.vlm); choose "
        "qwen2_5_vl or qwen3_vl, or leave datasets.vlm out"
    )


def conversation_loss(vlm: Any, batch: ConversationBatch) -> Tensor:
    """Cross-entropy of what the assistants say, with what ends it: the mean over all those tokens."""
    out = vlm.converse(batch)
    assert out.logits is not None
    assert out.labels is not None
    return F.cross_entropy(out.logits.float(), out.labels)
