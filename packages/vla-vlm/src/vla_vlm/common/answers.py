"""The tokens of an answer in a backbone's vocabulary: added, embedded, and read off hidden states.

B rows, S tokens, L answer ids, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from vla_core.batch import Role
from vla_core.errors import ConfigError

from vla_vlm.common.reserved import where


@dataclass(frozen=True)
class AnswerTokens:
    """Answer id i is token ``first + i``, for i below ``count``."""

    first: int
    count: int


def add_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, int]:
    """The token id of the first of ``texts``, and how many had to be added.

    Special tokens, so that they never come out of an instruction's text.

    Raises:
        ConfigError: the tokenizer has some of them elsewhere, so that they are not in one run.
    """
    missing = [text for text in texts if tokenizer.token_to_id(text) is None]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])
    ids = [tokenizer.token_to_id(text) for text in texts]
    first = ids[0]
    assert first is not None
    if ids != list(range(first, first + len(ids))):
        raise ConfigError(
            f"the tokenizer has tokens '{texts[0]}' to '{texts[-1]}' out of order or in part; "
            "use the tokenizer of the model as it was published"
        )
    return first, len(missing)


def closing_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of what closes an answer; ``<|name|>`` is a special token.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    for name in re.findall(r"<\|\w+\|>", text):
        if tokenizer.token_to_id(name) is None:
            raise ConfigError(
                f"head: an answer is closed with '{name}' (compat: starvla), which this backbone's tokenizer "
                "lacks; use a Qwen backbone, or compat: none"
            )
    tokenizer.encode_special_tokens = False
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def grow(module: Any, rows: int, first: int, count: int, std: float) -> None:
    """Give an embedding or a language head ``rows`` rows; ``count`` from ``first`` on start at random.

    In place: whoever holds the module (tied or not) sees the new weight.
    """
    old = module.weight
    with torch.no_grad():
        weight = old.new_empty(rows, old.shape[1])
        weight[: len(old)] = old
        weight[first : first + count].normal_(std=std)
    module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    for name in ("num_embeddings", "out_features"):
        if hasattr(module, name):
            setattr(module, name, rows)


def last_column(valid_BS: Tensor) -> Tensor:
    """Column ``[B]`` of each row's last token, wherever its padding is."""
    columns = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    return (columns * valid_BS).argmax(dim=1)


def before_answers(hidden_BSH: Tensor, roles_BS: Tensor, length: int) -> Tensor:
    """Hidden states ``[B, L, H]`` one token before each of a row's ``length`` answer tokens.

    A row with a shorter answer is filled up with others of its states; they have no label.
    """
    index = (where(roles_BS, Role.ANSWER, length) - 1).clamp(min=0)
    return hidden_BSH.gather(1, index[..., None].expand(-1, -1, hidden_BSH.shape[-1]))


def every_answer(hidden_BSH: Tensor, ids_BS: Tensor, roles_BS: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Hidden states ``[n, H]`` one token before each of all rows' ``count`` answer tokens, and these."""
    index = where(roles_BS.view(1, -1), Role.ANSWER, count)[0]
    return hidden_BSH.flatten(0, 1)[index - 1], ids_BS.flatten()[index]
