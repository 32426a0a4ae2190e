"""Transforms that take the state vector away: into the instruction, or altogether."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from vla_core.errors import ConfigError
from vla_core.ranges import Range, check_ranges
from vla_core.specs import RobotSpec
from vla_core.transforms.base import Transform
from vla_core.types import Observation


@dataclass(frozen=True)
class StateAsTextConfig:
    """How the state is written.

    Args:
        bins: equal bins over [-1, 1]; write normalised states.
        template: the new instruction, with ``{instruction}`` and ``{state}`` once each; the state is its
            bin numbers, separated by spaces.
    """

    bins: Annotated[int, Range(low=2)] = 256
    template: str = "{instruction} [STATE] {state} [ACTION]"

    def __post_init__(self) -> None:
        check_ranges(self, "state_as_text: ")
        for slot in ("{instruction}", "{state}"):
            if self.template.count(slot) != 1:
                raise ConfigError(f"state_as_text: template must contain {slot} once, got {self.template!r}")


class StateAsText(Transform):
    """The state as numbers in the instruction (pi0.5, arXiv 2504.16054), and no longer as a vector.

    A value below -1 is bin -1, one above 1 the last bin: as in the published models.
    """

    Config = StateAsTextConfig
    config: StateAsTextConfig
    takes_state = True

    def __init__(self, config: StateAsTextConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        if not spec.observation.state:
            raise ConfigError("state_as_text: the robot has no state")
        self._edges = np.linspace(-1, 1, config.bins + 1)[:-1]

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        return replace(spec, observation=replace(spec.observation, state=()))

    def texts(self, observation: Observation) -> Observation:
        if observation.state is None:
            return observation
        numbers = " ".join(str(n) for n in np.digitize(observation.state, self._edges) - 1)
        before, after = self.config.template.split("{instruction}")
        text = (
            before.replace("{state}", numbers) + observation.instruction + after.replace("{state}", numbers)
        )
        return replace(observation, instruction=text, state=None)


@dataclass(frozen=True)
class DropStateConfig:
    """No options."""


class DropState(Transform):
    """The policy does not see the robot's state, although the robot gives it.

    Steps before it still do: actions relative to the state come back as they must.
    """

    Config = DropStateConfig
    config: DropStateConfig
    takes_state = True

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        return replace(spec, observation=replace(spec.observation, state=()))

    def texts(self, observation: Observation) -> Observation:
        return replace(observation, state=None)


@dataclass(frozen=True)
class CleanInstructionConfig:
    """No options."""


class CleanInstruction(Transform):
    """The instruction in one line of words: no space around it, spaces for underscores and line ends.

    As openpi writes it into the prompts of pi0 and pi0.5, and lerobot into those of pi0.5.
    """

    Config = CleanInstructionConfig
    config: CleanInstructionConfig

    def texts(self, observation: Observation) -> Observation:
        text = observation.instruction.strip().replace("_", " ").replace("\n", " ")
        return super().texts(replace(observation, instruction=text))
