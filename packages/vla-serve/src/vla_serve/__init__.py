"""gRPC server and torch-free client for Vision-Language-Action policies, and the rollout loop.

``PolicyServer`` needs the extra ``server``; ``rollout`` the extra of its simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_serve.async_client import AsyncPolicyClient
from vla_serve.chunks import Continuation, PolicyRevision, ServedChunk
from vla_serve.client import PolicyClient, Timings
from vla_serve.client_batch import Difference
from vla_serve.client_errors import (
    HandshakeError,
    PolicyBusy,
    PolicyClientError,
    PolicyServerError,
    PolicySuperseded,
    PolicyTimeout,
    PolicyUnavailable,
    SessionLost,
)
from vla_serve.connection import TLS
from vla_serve.control_loop import ControlLoop, LoopStats
from vla_serve.ensemble import AdaptiveEnsemble, TemporalEnsemble

if TYPE_CHECKING:
    from vla_serve._rollout import RolloutSettings, rollout
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
    "RolloutSettings": "vla_serve._rollout",
    "rollout": "vla_serve._rollout",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vla_serve' has no attribute '{name}'")
