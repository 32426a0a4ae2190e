"""The one list of transforms between a robot's units and the model's; saved with the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_core import registry
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError, suggest
from vla_core.specs import RobotSpec
from vla_core.stats import BY_STEP, NormStats
from vla_core.streaming import StepStats, StreamingStats
from vla_core.transforms.base import Floats, Transform
from vla_core.types import Bool, Observation, Sample

Rows = Callable[[], Iterable[tuple["Floats | None", Floats, Bool]]]
"""Yields (state ``[S]`` or None, actions ``[T, A]``, mask ``[T, A]``) of every frame, without images."""


class Pipeline:
    """Applies transforms to samples and observations, and inverts them for predicted actions.

    Args:
        nodes: one ``{name: ..., **Config}`` a step.
        spec: the raw robot: what goes in, and the units of what comes out of :meth:`inverse`.
        statistics: statistics at the level of the step that needs them (saved by an earlier run).
        rows: where to compute them when an earlier step changes state or actions; without both,
            the raw statistics of ``spec`` are used.
        where, tree: where the nodes come from, for errors.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, Any]],
        spec: RobotSpec,
        *,
        statistics: NormStats | None = None,
        rows: Rows | None = None,
        where: str = "framework.transforms",
        tree: Tree | None = None,
    ) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.input_spec = spec
        self.steps: list[Transform] = []
        changed = False
        level = replace(spec, statistics=statistics) if statistics is not None else spec
        normalised = False
        for i, node in enumerate(nodes):
            name = node.get("name")
            place = tree.where(f"{where}.{i}") if tree else ""
            if not isinstance(name, str) or name not in registry.names("vla.transforms"):
                known = registry.names("vla.transforms")
                raise ConfigError(f"{place}{where}.{i}: no transform '{name}'{suggest(str(name), known)}")
            cls: type[Transform] = registry.load("vla.transforms", name)
            config = build_config(
                cls.Config, {k: v for k, v in node.items() if k != "name"}, f"{where}.{i}", tree
            )
            if normalised and (cls.changes_numbers or cls.needs_statistics):
                raise ConfigError(f"{place}{where}.{i}: '{name}' must come before 'normalize' (given once)")
            taken = next((n for n, s in zip(self.nodes, self.steps, strict=True) if s.takes_state), None)
            if cls.needs_statistics and taken is not None:
                before = taken["name"]
                raise ConfigError(f"{place}{where}.{i}: '{before}' must come after '{name}'")
            words: list[type[Transform]] = [cls, *(type(step) for step in self.steps)]
            if any(c.needs_sentence for c in words) and any(c.writes_into_sentence for c in words):
                # What is drawn is drawn last, when the words of the other step are in the instruction.
                raise ConfigError(f"{place}{where}.{i}: 'paraphrase' and 'state_as_text' do not go together")
            by_step = cls.wants_steps(config)
            if cls.needs_statistics and (changed or by_step) and statistics is None:
                if rows is None:
                    why = "has 'by_step'" if by_step else "follows a step that changes actions or state"
                    raise ConfigError(
                        f"{place}{where}.{i}: '{name}' {why}, so its statistics must be computed from the "
                        "data"
                    )
                level = replace(level, statistics=self._fit(rows, by_step))
            try:
                step = cls(config, level)
            except ConfigError as error:
                raise ConfigError(f"{place}{where}.{i}: {error}") from error
            changed = changed or cls.changes_numbers
            if cls.needs_statistics:
                self.statistics, normalised = level.statistics, True
            self.nodes.append({"name": name, **to_plain(config)})
            level = step.output_spec(level)
            self.steps.append(step)
        self.output_spec = level
        self._first_random = next((i for i, s in enumerate(self.steps) if s.is_random), len(self.steps))
        if not hasattr(self, "statistics"):
            self.statistics = spec.statistics

    def _fit(self, rows: Rows, by_step: bool) -> NormStats:
        states, actions, steps = StreamingStats(), StreamingStats(), StepStats()
        horizon = 0
        for state, chunk, mask in rows():
            horizon = len(chunk)
            chunk, state = self._forward(chunk[mask.any(axis=1)], state)
            actions.add(chunk)
            if by_step:
                steps.add(chunk)
            if state is not None:
                states.add(state[None])
        vectors = {"action": actions.result()}
        if states.count:
            vectors["state"] = states.result()
        if by_step:
            vectors[BY_STEP] = steps.result(horizon)
        return NormStats(vectors)

    def _forward(self, actions: Floats, state: Floats | None) -> tuple[Floats, Floats | None]:
        for step in self.steps:
            actions = step.actions(actions, state)
            state = None if state is None else step.state(state)
        return actions, state

    def targets(self, state: Floats | None, actions: Floats, mask: Bool) -> tuple[Floats, Bool]:
        """Actions and mask ``[T, A]`` of a raw row as the model sees them; masked entries become 0."""
        # Padded steps are not transformed: zeros are no rotation, and they never reach a loss.
        real = np.flatnonzero(mask.any(axis=1))
        forward, _ = self._forward(actions[real], state)
        out: Floats = np.zeros((mask.shape[0], forward.shape[1]), np.float32)
        out[real] = forward
        if mask.shape != out.shape:
            # A rotation changed its number of dims: a step is valid as a whole or not at all.
            mask = np.broadcast_to(mask.all(axis=1, keepdims=True), out.shape)
        out[~mask] = 0
        return out, mask

    def observe(self, observation: Observation, rng: np.random.Generator | None = None) -> Observation:
        """The observation as the model sees it; augmentations act only when ``rng`` is given."""
        for step in self.steps:
            observation = step.observation(observation, rng)
        return observation

    def deterministic(self, sample: Sample) -> Sample:
        """First half of :meth:`__call__`: all but the image steps from the first random one on.

        The result can be cached; :meth:`random` completes it.
        """
        actions, mask = self.targets(sample.observation.state, sample.actions, sample.action_mask)
        observation = self._leading(sample.observation)
        future = None if sample.future is None else self._leading(sample.future)
        return replace(sample, observation=observation, actions=actions, action_mask=mask, future=future)

    def _leading(self, observation: Observation) -> Observation:
        for i, step in enumerate(self.steps):
            whole = i < self._first_random
            observation = step.observation(observation, None) if whole else step.texts(observation)
        return observation

    def random(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Second half of :meth:`__call__`: the image steps from the first random one on.

        ``sample.future`` gets the same draws, so that the two images differ by what happened alone.
        """
        future = sample.future
        if future is not None:
            future = self._trailing(future, copy.deepcopy(rng))
        return replace(sample, observation=self._trailing(sample.observation, rng), future=future)

    def _trailing(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        for step in self.steps[self._first_random :]:
            observation = step.images(observation, rng)
        return observation

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """The sample as the model sees it; masked action entries become 0."""
        return self.random(self.deterministic(sample), rng)

    def actions(self, actions: Floats, raw_state: Floats | None) -> Floats:
        """Actions ``[T, A]`` in the robot's units as the model sees them; what :meth:`inverse` undoes."""
        return self._forward(actions, raw_state)[0]

    def inverse(self, actions: Floats, raw_state: Floats | None) -> Floats:
        """Model actions ``[T, A]`` in the robot's units; ``raw_state`` is the observation's own."""
        states = [raw_state]
        for step in self.steps:
            states.append(None if states[-1] is None else step.state(states[-1]))
        for step, state in zip(reversed(self.steps), reversed(states[:-1]), strict=True):
            actions = step.inverse(actions, state)
        return actions
