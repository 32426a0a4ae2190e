"""gRPC server and torch-free client for Vision-Language-Action policies, and the rollout loop.

``PolicyServer`` needs the extra ``server``; ``rollout`` the extra of its simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.batch import Difference
from vla_serve.clients.chunks import Continuation, PolicyRevision, ServedChunk
from vla_serve.clients.client import PolicyClient, Timings
from vla_serve.clients.connection import TLS
from vla_serve.clients.control_loop import ControlLoop, LoopStats
from vla_serve.clients.ensemble import AdaptiveEnsemble, TemporalEnsemble
from vla_serve.clients.errors import (
    HandshakeError,
    PolicyBusy,
    PolicyClientError,
    PolicyServerError,
    PolicySuperseded,
    PolicyTimeout,
    PolicyUnavailable,
    SessionLost,
)

if TYPE_CHECKING:
    from vla_serve.rollouts.rollout import RolloutSettings, rollout
    from vla_serve.server import PolicyServer

__all__ = [
    "TLS",
    "AdaptiveEnsemble",
    "AsyncPolicyClient",
    "Continuation",
    "ControlLoop",
    "Difference",
    "HandshakeError",
    "LoopStats",
    "PolicyBusy",
    "PolicyClient",
    "PolicyClientError",
    "PolicyRevision",
    "PolicyServer",
    "PolicyServerError",
    "PolicySuperseded",
    "PolicyTimeout",
    "PolicyUnavailable",
    "RolloutSettings",
    "ServedChunk",
    "SessionLost",
    "TemporalEnsemble",
    "Timings",
    "rollout",
]

_LAZY = {
    "PolicyServer": "vla_serve.server",
    "RolloutSettings": "vla_serve.rollouts.rollout",
    "rollout": "vla_serve.rollouts.rollout",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vla_serve' has no attribute '{name}'")
