"""What carries the training step: one process, DDP, DeepSpeed or FSDP2, behind one interface."""

from __future__ import annotations

from vla_train.engine.base import Engine
from vla_train.engine.choose import make_engine

__all__ = ["Engine", "make_engine"]
