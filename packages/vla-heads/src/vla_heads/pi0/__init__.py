"""The action expert of pi0 and pi0.5: its tokens join the attention of every layer of the backbone."""

from vla_heads.pi0.config import PI0Config
from vla_heads.pi0.head import PI0Head
from vla_heads.pi0.prepared import Prepared

__all__ = ["PI0Config", "PI0Head", "Prepared"]
