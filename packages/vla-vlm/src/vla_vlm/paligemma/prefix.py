"""The language loop of a prefix: all tokens attend to each other, and layers hand out keys and values.

B rows, S tokens, H hidden size, n key-value heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, apply_rotary_pos_emb
from vla_core.shard import ShardUnit

from vla_vlm.common.kernels import for_kernel
from vla_vlm.common.rope import TextRope
from vla_vlm.common.text import check_layers


def run_prefix(
    language_model: Any,
    rope: TextRope,
    embeds_BSH: Tensor,
    valid_BS: Tensor,
    position_ids: Tensor,
    layers: Sequence[int],
    kv_layers: Sequence[int] = (),
) -> tuple[dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """Hidden states of ``layers`` (0 embeddings, ``n`` after the final norm), keys and values of others.

    A layer of which keys and values alone are wanted, and nothing above it, is not run.

    Args:
        position_ids: long ``[1, B, S]``.
        kv_layers: whose keys and values are wanted; 1 is the first.

    Raises:
        ValueError: a layer that the model doesn't have.
    """
    n_layers = len(language_model.layers)
    check_layers(layers, n_layers)
    unknown = [i for i in kv_layers if not 1 <= i <= n_layers]
    if unknown:
        raise ValueError(f"no keys and values of layers {unknown}: the model has layers 1 to {n_layers}")
    hidden = {0: embeds_BSH} if 0 in layers else {}
    kv: dict[int, tuple[Tensor, Tensor]] = {}
    last_kv = max(kv_layers, default=0)
    last = max(*layers, last_kv - 1, 0)
    cos_sin = rope(position_ids, embeds_BSH.dtype)
    implementation = language_model.config._attn_implementation
    mask = for_kernel(valid_BS[:, None, None], implementation, embeds_BSH.dtype)
    x = embeds_BSH
    for i in range(1, max(last, last_kv) + 1):
        x, *keys_values = language_model.layers[i - 1](
            x,
            attention_mask=mask,
            position_embeddings=cos_sin,
            keys_and_values=i in kv_layers,
            alone=i > last,
        )
        if i in kv_layers:
            kv[i] = (keys_values[0], keys_values[1])
        if i in layers and i < n_layers:
            hidden[i] = x
    if n_layers in layers:
        hidden[n_layers] = language_model.norm(x)
    return hidden, kv


class PrefixLayer(ShardUnit, GradientCheckpointingLayer):
    """Gemma's layer (retyped), which also hands out what its attention reads."""

    self_attn: Any
    input_layernorm: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        keys_and_values: bool = False,
        alone: bool = False,
    ) -> tuple[Tensor, ...]:
        """Run the layer.

        Args:
            hidden_states: ``[B, S, H]``.
            attention_mask: as the attention implementation wants it.
            position_embeddings: rotary cosines and sines.
            keys_and_values: also give these, each ``[B, n, S, d]``; keys after their rotary positions.
            alone: and nothing else: the layer itself is not run.

        Returns:
            The layer's output (``alone``: its input), and keys and values where asked for.
        """
        assert position_embeddings is not None
        found = self._keys_and_values(hidden_states, position_embeddings) if keys_and_values else ()
        if alone:
            return (hidden_states, *found)
        run: Any = GemmaDecoderLayer.forward
        x = run(self, hidden_states, attention_mask, position_embeddings=position_embeddings)
        return (x, *found)

    def _keys_and_values(self, x_BSH: Tensor, cos_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # Computed beside the attention, not taken out of it: with Gemma's single key-value head this is a
        # small part of the layer's work.
        attention, x = self.self_attn, self.input_layernorm(x_BSH)
        key, value = (
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        _, key = apply_rotary_pos_emb(key, key, *cos_sin)
        # Under autocast the positions are float32 and would widen the keys alone.
        return key.to(value.dtype), value
