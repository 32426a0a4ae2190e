"""An action head in one file: mean hidden state and robot state through one layer, squared error.

Shape legend: B rows, S tokens, H hidden size, D state dims, T action steps, A action dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from vla_core.interfaces import HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest
from vla_core.traits import HeadTraits


class MyHead(nn.Module):
    """Entry point ``my_head`` in ``vla.heads``."""

    @dataclass(frozen=True)
    class Config:
        """The YAML node ``framework.head``."""

        dropout: float = 0.0

    prompt = PromptSpec()  # no query tokens, no words after the instruction
    traits = HeadTraits()  # it cannot keep the start of an earlier chunk

    def __init__(self, config: Config, dims: HeadDims) -> None:
        super().__init__()
        self.shape = (dims.horizon, dims.action_dim)
        self.layer = dims.n_layers
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(dims.hidden_size + dims.state_dim, dims.horizon * dims.action_dim)

    @classmethod
    def build(cls, config: Any, dims: HeadDims) -> MyHead:
        """Sizes come from the other parts (``dims``), never from config."""
        return cls(config, dims)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The backbone computes the last layer's hidden state and nothing more."""
        return VLMRequest(layers=(self.layer,))

    def predict(self, inputs: HeadInputs) -> Tensor:
        """Normalised actions ``[B, T, A]``."""
        weight_BS1 = inputs.vlm.mask[..., None]
        hidden_BSH = inputs.vlm.hidden[self.layer]
        x = (hidden_BSH * weight_BS1).sum(1) / weight_BS1.sum(1)
        if inputs.state is not None:  # [B, D]; a robot without proprioception gives None
            x = torch.cat([x, inputs.state.to(x.dtype)], dim=-1)
        return self.out(self.dropout(x)).unflatten(-1, self.shape)

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Mean squared error over the entries of ``mask``; padding never enters the loss."""
        error_BTA = (self.predict(inputs).float() - actions.float()) ** 2
        return {"action": torch.where(mask, error_BTA, 0.0).sum() / mask.sum().clamp(min=1)}

    def sample(self, inputs: HeadInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """This head is deterministic: it reads neither ``noise`` nor ``steps``."""
        return self.predict(inputs)
