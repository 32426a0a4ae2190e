"""GR00T's flow-matching head: a DiT over one hidden state, with encoders for each embodiment."""

from vla_heads.groot_flow.config import GR00TFlowConfig
from vla_heads.groot_flow.head import GR00TFlow

__all__ = ["GR00TFlow", "GR00TFlowConfig"]
