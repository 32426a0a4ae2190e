"""What an importer knows about a framework: head node, prompt, use of the state, moves of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.run_files import StarVLARun

StateUse = Literal["none", "vector", "text"]
"""Not read, a vector for the head, or numbers in the instruction."""


@dataclass(frozen=True)
class Plan:
    """How one run becomes a policy.

    Args:
        preset: our framework's name.
        horizon: T.
        action_dim: of the head.
        state_dim: of the head's state encoder, where the weights tell; None: they do not.
        head: the head's node.
        state: how the run read the state.
        notes: what the user should know.
        after_queries: prompt text between the queries and the rest of the user's turn.
        queries_in_instruction: suffix and queries stand where the instruction does, within
            ``CoT_prompt``; else the prompt has none.
        speaks: the backbone's language head is read.
        own_size: the run served images as it trained on them, whatever ``obs_image_size`` says.
        size_key: in the config's ``datasets.vla_data``, the size to which a served image is brought first.
        vlm: further keys of the backbone's node.
        geometry, fusion: nodes, where the framework has them.
        late: moves that need the policy's own tensors.
    """

    preset: str
    horizon: int
    action_dim: int
    state_dim: int | None
    head: dict[str, Any]
    state: StateUse
    notes: list[str] = field(default_factory=list)
    after_queries: str = ""
    queries_in_instruction: bool = False
    speaks: bool = False
    own_size: bool = False
    size_key: str = "obs_image_size"
    vlm: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    late: Callable[[Mapping[str, Tensor]], None] | None = None


@dataclass(frozen=True)
class Choices:
    """What the command line may say about a run.

    Args:
        dit_blocks: of a layerwise head: odd blocks attend to the backbone (``cross``) or among
            their own tokens (``interleaved``).
        horizon: T, where the config lacks it.
        fast: directory of QwenFast's action tokenizer.
    """

    dit_blocks: Literal["cross", "interleaved"] | None = None
    horizon: int | None = None
    fast: str | None = None


Importer = Callable[[StarVLARun, Ledger, Choices, Backbone], Plan]
