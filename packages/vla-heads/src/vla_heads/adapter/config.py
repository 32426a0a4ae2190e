"""Choices of :class:`~vla_heads.adapter.AdapterHead`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.interfaces import HeadDims
from vla_core.ranges import BelowOne, Count, check_ranges

from vla_heads.flow_config import heads_of


@dataclass(frozen=True)
class AdapterHeadConfig:
    """YAML node of ``adapter``.

    Args:
        n_queries: learned query tokens in the prompt.
        n_blocks: adapter blocks, spread evenly over the backbone's layers (the last block reads the
            last layer; more blocks than layers share them); null is one per layer.
        width: width W of the action tokens.
        n_heads: attention heads; null is W / 64 (at least 1).
        dropout: in each block, after attention and feed-forward.
        state_hidden: hidden width of the state encoder.
        suffix: prompt text between instruction and queries; ``{horizon}`` is T.
        compat: ``starvla`` builds the network of StarVLA's checkpoints instead
            (:mod:`vla_heads.compat.adapter`); set by ``vla-train import-starvla``.
        use_pro_version: with ``compat: starvla``: its blocks with rotary positions.
    """

    n_queries: Count = 64
    n_blocks: Count | None = 24
    width: Count = 1024
    n_heads: Count | None = None
    dropout: BelowOne = 0.0
    state_hidden: Count = 1024
    suffix: str = ""
    compat: Literal["none", "starvla"] = "none"
    use_pro_version: bool = True


@dataclass(frozen=True)
class Sizes:
    """A config resolved against the backbone: heads, and the layer of each block."""

    n_heads: int
    layers: tuple[int, ...]


def resolve(config: AdapterHeadConfig, dims: HeadDims) -> Sizes:
    """Fill the nulls and check the rest.

    Raises:
        ConfigError: a value that cannot work, with the key's name and the fix.
    """
    check_ranges(config)
    n_blocks = dims.n_layers if config.n_blocks is None else config.n_blocks
    # ceil((i + 1) N / K): the identity for K = N.
    layers = tuple(-(-(i + 1) * dims.n_layers // n_blocks) for i in range(n_blocks))
    return Sizes(heads_of(config.width, config.n_heads), layers)
