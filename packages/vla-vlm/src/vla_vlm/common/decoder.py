"""Speaking after a prompt: kept keys and values, and one step of the language loop at a time.

B rows, S prompt tokens, R room for spoken ones, P position axes, H hidden size, n key-value heads,
d head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from vla_vlm.common.kernels import for_kernel
from vla_vlm.common.rope import TextRope

CACHE = "cache" if "cache" in signature(LlamaAttention.forward).parameters else "past_key_values"
"""The argument of transformers' layers: 5.17 and 5.24 call it differently."""


class KVCache:
    """Keys and values of all layers, in buffers that are made once: ``[B, n, S + R, d]`` each.

    To transformers' layers it is what :data:`CACHE` says. The first tokens that a layer hands over are the
    prompt, and attend to themselves alone; what comes later attends to the whole buffer, under a mask.

    Args:
        room: R.
    """

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Keep what a layer computed; returns what it shall attend to. Later transformers hand over more."""
        if layer_idx not in self.layers:
            self.layers[layer_idx] = (self._buffer(key), self._buffer(value))
            self.length = key.shape[2]
            return key, value
        keys, values = self.layers[layer_idx]
        keys[:, :, self.length - 1 : self.length] = key
        values[:, :, self.length - 1 : self.length] = value
        return keys, values

    def _buffer(self, x: Tensor) -> Tensor:
        b, n, s, d = x.shape
        # Zeros, not garbage: a NaN under the mask would still reach the weighted sum.
        buffer = x.new_zeros(b, n, s + self.room, d)
        buffer[:, :, :s] = x
        return buffer


class TextDecoder:
    """A :class:`~vla_core.answers.Decoder` over the layers of a language model.

    Args:
        language_model: transformers' decoder.
        rope: its rotary tables.
        cache: what the prompt left there.
        valid_BS: which of the prompt's tokens may be attended to.
        position_B: of the first spoken token, on every axis.
        axes: P.
        embed: answer ids ``[B, 1]`` -> ``[B, 1, H]``.
        read: hidden states ``[B, H]`` -> logits ``[B, n_ids]``.
        hidden_BH: after the final norm, at each row's last token.
    """

    def __init__(
        self,
        language_model: Any,
        rope: TextRope,
        cache: KVCache,
        valid_BS: Tensor,
        position_B: Tensor,
        axes: int,
        embed: Callable[[Tensor], Tensor],
        read: Callable[[Tensor], Tensor],
        hidden_BH: Tensor,
    ) -> None:
        self.language_model, self.rope, self.cache = language_model, rope, cache
        self.embed, self.read, self.axes = embed, read, axes
        self.valid = torch.cat([valid_BS, valid_BS.new_zeros(len(valid_BS), cache.room)], dim=1)
        self.position = position_B
        self.logits = read(hidden_BH)

    def step(self, ids: Tensor) -> Tensor:
        """See the protocol.

        Raises:
            ValueError: more steps than room was asked for.
        """
        column = self.cache.length
        if column == self.valid.shape[1]:
            raise ValueError(f"the decoder has room for {self.cache.room} ids (VLMRequest.decoder)")
        self.cache.length = column + 1
        self.valid[:, column] = True
        x_B1H = self.embed(ids[:, None])
        cos_sin = self.rope(self.position.expand(self.axes, 1, -1).transpose(1, 2), x_B1H.dtype)
        self.position = self.position + 1
        implementation = self.language_model.config._attn_implementation
        mask = for_kernel(self.valid[:, None, None], implementation, x_B1H.dtype)
        for layer in self.language_model.layers:
            x_B1H = layer(x_B1H, attention_mask=mask, position_embeddings=cos_sin, **{CACHE: self.cache})
        self.logits = self.read(self.language_model.norm(x_B1H)[:, 0])
        return self.logits
