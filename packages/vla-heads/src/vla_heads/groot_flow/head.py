"""GR00T's flow-matching head: a DiT over one hidden state, with encoders for each embodiment.

Shape legend: L own tokens = [state | future | actions], S context tokens, H hidden size, W width,
K blocks.
"""

from __future__ import annotations

from typing import ClassVar

from vla_core.interfaces import HeadDims

from vla_heads.compat import choose
from vla_heads.flow_head import FlowHead
from vla_heads.groot_flow.block import InterleavedBlock
from vla_heads.groot_flow.config import GR00TFlowConfig, resolve


class GR00TFlow(FlowHead):
    """Flow matching over one hidden state, as in GR00T N1 (arXiv 2503.14734).

    Blocks alternate between cross-attention to the backbone and self-attention. State encoder, action
    encoder and decoder have weights for each embodiment, picked by ``HeadInputs.embodiment``.

    Cost per observation, in FLOP: ``2 K S H W`` for the context once, then for each repeat (training)
    or denoise step (sampling) ``K L (22 W^2 + 2 W (S + L))``.
    """

    Config: ClassVar[type] = GR00TFlowConfig
    config: GR00TFlowConfig

    def __init__(self, config: GR00TFlowConfig, dims: HeadDims) -> None:
        sizes = resolve(config, dims)
        crosses = [i % 2 == 0 for i in range(config.n_blocks)]
        super().__init__(
            config,
            dims,
            [
                InterleavedBlock(
                    sizes.width, sizes.n_heads, dims.hidden_size if cross else None, config.dropout
                )
                for cross in crosses
            ],
            [sizes.layer if cross else None for cross in crosses],
            sizes.width,
            config.output_width,
            config.normalize_vl_hidden,
            n_embodiments=dims.n_embodiments,
        )

    @classmethod
    def build(cls, config: GR00TFlowConfig, dims: HeadDims) -> FlowHead:
        """Build for a backbone and robots of the given sizes; with ``compat`` a head of another system.

        Raises:
            ConfigError: see :func:`~vla_heads.groot_flow.config.resolve`.
        """
        head: FlowHead = choose("groot_flow", config.compat, cls)(config, dims)
        return head
