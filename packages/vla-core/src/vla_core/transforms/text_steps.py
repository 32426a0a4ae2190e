"""Transforms of words: the instruction said otherwise, and the state in it or left out."""

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
    writes_into_sentence = True

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


@dataclass(frozen=True)
class ParaphraseConfig:
    """Sentences that mean the same.

    Args:
        groups: lists of at least two sentences each; a sentence is in one list.
    """

    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for i, group in enumerate(self.groups):
            if len(group) < 2:
                raise ConfigError(f"paraphrase: groups[{i}] needs two sentences or more, got {list(group)}")
            for sentence in group:
                if sentence in seen:
                    raise ConfigError(f"paraphrase: '{sentence}' is in groups twice")
                seen.add(sentence)


class Paraphrase(Transform):
    """While training an instruction is any sentence of its group, drawn for each sample.

    A policy that learns its language from demonstrations hears each sentence with every one of them, not
    some with few. An instruction of no group stays; what a robot is told is never changed.
    """

    Config = ParaphraseConfig
    config: ParaphraseConfig
    is_random = True
    needs_sentence = True

    def __init__(self, config: ParaphraseConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        self._group = {sentence: group for group in config.groups for sentence in group}

    @property
    def sentences(self) -> tuple[str, ...]:
        """See the base."""
        return tuple(self._group)

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        """Draws the instruction, where there is an ``rng``; pictures stay."""
        group = self._group.get(observation.instruction)
        if rng is None or group is None:
            return observation
        return replace(observation, instruction=group[rng.integers(len(group))])
