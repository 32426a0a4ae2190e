"""Simulators behind one protocol (entry points ``vla.envs``)."""

from vla_core.envs.protocol import Env, ExpertEnv, StepResult

__all__ = ["Env", "ExpertEnv", "StepResult"]
