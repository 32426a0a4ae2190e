"""Public fakes: specs, observations and samples (numpy), and a tiny policy of fake parts (torch).

For tests of code that uses this package. ``FakeVLM``, ``FakeHead``, ``tiny_policy`` and ``register_fakes``
need the extra ``torch``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_core.testing.data import make_observation, make_sample, make_spec

if TYPE_CHECKING:
    from vla_core.testing.models import FakeHead, FakeVLM, register_fakes, tiny_policy

__all__ = [
    "FakeHead",
    "FakeVLM",
    "make_observation",
    "make_sample",
    "make_spec",
    "register_fakes",
    "tiny_policy",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vla_core.testing import models

        return getattr(models, name)
    raise AttributeError(f"module 'vla_core.testing' has no attribute '{name}'")
