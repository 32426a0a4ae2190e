"""What a transform is.

A transform may change images, state and actions; whatever it does to actions it can undo. Steps see
the state of their own level (what earlier steps made of the raw state). Shapes: S state dims,
T steps, A action dims.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vla_core.specs import RobotSpec
from vla_core.types import Observation

Floats = NDArray[np.float32]


class Transform:
    """The identity; subclasses override what they change. Entry points ``vla.transforms``.

    ``Config`` is the YAML node; ``__init__(config, spec)`` gets the spec of this step's input.
    ``needs_statistics`` steps read ``spec.statistics``, which the pipeline computes at this level.
    ``is_random`` steps change images differently each time they are given an ``rng``.
    ``changes_numbers`` steps give state or actions another meaning, so statistics from before no longer fit.
    ``takes_state`` steps leave no state vector behind.
    ``needs_sentence`` steps read the instruction as people say it; ``writes_into_sentence`` steps change it.
    """

    Config: ClassVar[type[Any]]
    needs_statistics: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    changes_numbers: ClassVar[bool] = False
    takes_state: ClassVar[bool] = False
    needs_sentence: ClassVar[bool] = False
    writes_into_sentence: ClassVar[bool] = False

    def __init__(self, config: Any, spec: RobotSpec) -> None:
        self.config = config

    @classmethod
    def wants_steps(cls, config: Any) -> bool:
        """Whether, so configured, it reads statistics of each step of a chunk (``stats.BY_STEP``)."""
        return False

    @property
    def sentences(self) -> tuple[str, ...]:
        """Instructions that a random step may draw, so that all can be tried before training."""
        return ()

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        """The spec after this step."""
        return spec

    def images(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        """Change images, depth and intrinsics together; random steps act only when ``rng`` is given, and one
        that draws words draws them here."""
        return observation

    def state(self, state: Floats) -> Floats:
        """Change the state ``[S]``."""
        return state

    def actions(self, actions: Floats, state: Floats | None) -> Floats:
        """Change actions ``[T, A]``; ``state`` is this step's input state."""
        return actions

    def inverse(self, actions: Floats, state: Floats | None) -> Floats:
        """Undo :meth:`actions` given the same ``state``."""
        return actions

    def texts(self, observation: Observation) -> Observation:
        """Change all but the images: :meth:`state`, and the instruction in a step that writes into it."""
        if observation.state is None:
            return observation
        return replace(observation, state=self.state(observation.state))

    def observation(self, observation: Observation, rng: np.random.Generator | None) -> Observation:
        """:meth:`images` and :meth:`texts` together."""
        return self.texts(self.images(observation, rng))
