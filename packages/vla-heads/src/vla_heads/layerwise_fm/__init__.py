"""Layerwise flow-matching head: block i of a DiT attends to layer i of the backbone."""

from vla_heads.layerwise_fm.config import LayerwiseFMConfig
from vla_heads.layerwise_fm.head import LayerwiseFM
from vla_heads.prepared import Prepared
from vla_heads.time_condition import TimeCondition

__all__ = ["LayerwiseFM", "LayerwiseFMConfig", "Prepared", "TimeCondition"]
