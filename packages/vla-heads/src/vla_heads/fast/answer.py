"""A sample's actions as the ids of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError

from vla_heads.fast.tokenizer import ActionTokenizer
from vla_heads.fast.transform import hold


@dataclass(frozen=True)
class FASTAnswer:
    """See :class:`~vla_core.answers.AnswerIds`; runs in data workers.

    Args:
        tokenizer: of whole chunks.
        max_length: the longest answer.
    """

    tokenizer: ActionTokenizer
    max_length: int

    @property
    def tokens(self) -> Sequence[str]:
        """The names that StarVLA's checkpoints use."""
        return [f"<robot_action_{i}>" for i in range(self.tokenizer.vocab_size)]

    def __call__(self, actions: NDArray[np.float32], mask: NDArray[np.bool_]) -> list[int]:
        """Ids of the valid entries (see :func:`~.transform.hold`); none when there is no valid one."""
        if not mask.any():
            return []
        ids = self.tokenizer.encode(hold(actions, mask, self.tokenizer.horizon, self.tokenizer.action_dim))
        if len(ids) > self.max_length:
            raise UserError(
                f"an action chunk needs {len(ids)} tokens, more than head.max_tokens = {self.max_length}; "
                f"set head.max_tokens to {len(ids)} or more"
            )
        return ids
