"""The simulator's own scripted expert in the place of a policy: what success is possible at all."""

from __future__ import annotations

from typing import Any

from vla_core.envs import ExpertEnv
from vla_core.errors import UserError
from vla_core.types import Float, Observation

from vla_serve.clients.control_loop import LoopStats

NAME = "expert"
"""What ``policy`` says for it, without an address."""


class ExpertLoop:
    """Asks the expert at every control step; has what an episode needs of a ``ControlLoop``."""

    execute_steps = 1

    def __init__(self, env: ExpertEnv) -> None:
        self._env, self.stats = env, LoopStats()

    def reset(self) -> None:
        """Nothing is kept between steps."""

    def act(self, observation: Observation, seed: int) -> Float:
        """The expert's action ``[A]`` for the simulator's state; neither argument matters."""
        return self._env.expert_action()


def check(env_class: Any, env: str, settings: Any) -> None:
    """Refuse a simulator without an expert, and options that only a policy can follow.

    Raises:
        UserError: which.
    """
    if not hasattr(env_class, "expert_action"):
        raise UserError(f"policy: '{env}' has no scripted expert")
    options = ("execute_steps", "delay_steps", "instruction", "instruction_from", "hide")
    for name in (*options, "temporal_ensemble_coeff", "adaptive_ensemble_alpha"):
        if getattr(settings, name) is not None:
            raise UserError(f"{name}: an expert sees the simulator's state and follows nothing; leave it out")


def described() -> dict[str, Any]:
    """The ``policy`` of results.json."""
    return {
        "server_version": "",
        "policies": [{"name": NAME, "framework": "scripted"}],
        "weights_digest": "",
        "statistics_digest": "",
    }
