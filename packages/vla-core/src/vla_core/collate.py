"""Samples to a :class:`~vla_core.batch.Batch`, the same way in training workers and in the server.

Shape legend: B rows, V views, H, W pixels, D state dims, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vla_core.batch import Batch, Cameras, Known, TokenFields
from vla_core.checks import check_shape, check_views
from vla_core.errors import UserError, suggest
from vla_core.interfaces import TextCollator
from vla_core.specs import RobotSpec
from vla_core.types import Observation, Sample


class _AnsweringCollator(Protocol):
    """The text collator of an ``AnsweringModel``."""

    def __call__(self, samples: Sequence[Sample], answers: bool) -> TokenFields: ...


class PolicyCollator:
    """Stacks views in the order of the spec, pads state and actions, and asks the backbone for tokens.

    Args:
        text: the backbone's collator.
        specs: embodiment -> spec *after* the pipeline; sizes are padded to the largest.
        answers: have it write the samples' answers into training batches (``PromptSpec.answer_ids``).
    """

    def __init__(self, text: TextCollator, specs: Mapping[str, RobotSpec], answers: bool = False) -> None:
        self.text, self.answers = text, answers
        self.cameras = {n: [c.name for c in s.observation.cameras] for n, s in specs.items()}
        self.specs = dict(specs)
        self.order = {name: i for i, name in enumerate(specs)}
        self.n_views = max(len(names) for names in self.cameras.values())
        self.state_dim = max(s.observation.state_dim for s in specs.values())
        self.action_dim = max(s.action.dim for s in specs.values())
        self.horizon = max(s.action.horizon for s in specs.values())
        first = next(iter(specs.values())).observation.cameras[0]
        self.size = (first.height, first.width)

    def __call__(self, samples: Sequence[Sample], actions: bool = True, future: bool = False) -> Batch:
        """A batch of transformed samples.

        ``actions=False`` leaves the targets out (inference); ``future=True`` adds the observations at the
        chunks' ends.

        Raises:
            UserError: an image, state or action whose shape is not that of the spec, by name.
        """
        b, (h, w) = len(samples), self.size
        images_BVCHW = np.zeros((b, self.n_views, 3, h, w), np.uint8)
        view_mask = np.zeros((b, self.n_views), np.bool_)
        state_BD = np.zeros((b, self.state_dim), np.float32)
        state_mask = np.zeros((b, self.state_dim), np.bool_)
        for i, sample in enumerate(samples):
            observation = sample.observation
            spec = self._spec(observation.embodiment)
            check_views(observation, spec)
            for v, name in enumerate(self.cameras[observation.embodiment]):
                if name not in observation.images:
                    continue
                for channel in range(3):  # one copy, where a permutation of all is a second one
                    images_BVCHW[i, v, channel] = observation.images[name][..., channel]
                view_mask[i, v] = True
            if observation.state is not None:
                d = spec.observation.state_dim
                check_shape(observation.state, (d,), "state", "state")
                state_BD[i, :d] = observation.state
                state_mask[i, :d] = True
        has_state = self.state_dim > 0
        batch = Batch(
            images=torch.from_numpy(images_BVCHW),
            view_mask=torch.from_numpy(view_mask),
            tokens=replace(self._tokens(samples, actions), all_views=bool(view_mask.all())),
            embodiment=torch.tensor([self.order[s.observation.embodiment] for s in samples]),
            state=torch.from_numpy(state_BD) if has_state else None,
            state_mask=torch.from_numpy(state_mask) if has_state else None,
            cameras=self._cameras([s.observation for s in samples]),
        )
        if actions:
            batch.actions, batch.action_mask = self._actions(samples)
        else:
            batch.action_mask = self._action_entries(samples)
        if future:
            ends = [replace(s, observation=s.future or s.observation, future=None) for s in samples]
            batch.future = self(ends, actions=False)
            batch.future_mask = torch.tensor([s.future is not None for s in samples])
        return batch

    def _tokens(self, samples: Sequence[Sample], actions: bool) -> TokenFields:
        if actions and self.answers:
            return cast(_AnsweringCollator, self.text)(samples, answers=True)
        return self.text(samples)

    def view_keys(
        self, observations: Sequence[Observation], named: Sequence[Mapping[str, str]]
    ) -> tuple[tuple[str | None, ...], ...]:
        """Keys of pictures by camera name, one mapping a row, in the order of the batch's views.

        Raises:
            UserError: another number of rows, or a camera that the embodiment does not have.
        """
        if len(named) != len(observations):
            raise UserError(f"view_keys: {len(named)} rows for {len(observations)} observations")
        rows = []
        for observation, keys in zip(observations, named, strict=True):
            cameras = self.cameras[observation.embodiment]
            for name in keys:
                if name not in cameras:
                    raise UserError(f"view_keys: no camera '{name}'{suggest(name, cameras)}")
            row = [keys.get(name) for name in cameras]
            rows.append((*row, *[None] * (self.n_views - len(row))))
        return tuple(rows)

    def _spec(self, embodiment: str) -> RobotSpec:
        if embodiment not in self.specs:
            raise UserError(f"no embodiment '{embodiment}' here{suggest(embodiment, self.specs)}")
        return self.specs[embodiment]

    def _actions(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        actions_BTA = np.zeros((len(samples), self.horizon, self.action_dim), np.float32)
        mask_BTA = np.zeros(actions_BTA.shape, np.bool_)
        for i, sample in enumerate(samples):
            action = self._spec(sample.observation.embodiment).action
            t, a = action.horizon, action.dim
            for name, array in (("actions", sample.actions), ("action_mask", sample.action_mask)):
                if array.shape != (t, a):
                    raise UserError(f"{name} have shape {array.shape}, the spec says {(t, a)}")
            actions_BTA[i, :t, :a] = np.where(sample.action_mask, sample.actions, 0)
            mask_BTA[i, :t, :a] = sample.action_mask
        return torch.from_numpy(actions_BTA), torch.from_numpy(mask_BTA)

    def _action_entries(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Bool ``[B, T, A]``: what is not padding between embodiments."""
        mask_BTA = torch.zeros(len(samples), self.horizon, self.action_dim, dtype=torch.bool)
        for row, sample in zip(mask_BTA, samples, strict=True):
            action = self._spec(sample.observation.embodiment).action
            row[: action.horizon, : action.dim] = True
        return mask_BTA

    def _stack(
        self, observations: Sequence[Observation], kind: str, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """``[B, V, *shape]`` (None: no view has it), and which views have it (None: all that are there)."""
        if not any(getattr(observation, kind) for observation in observations):
            return None, None
        out = np.zeros((len(observations), self.n_views, *shape), np.float32)
        known = np.zeros(out.shape[:2], np.bool_)
        lacking = False
        for i, observation in enumerate(observations):
            values: Mapping[str, NDArray[np.float32]] = getattr(observation, kind) or {}
            for v, name in enumerate(self.cameras[observation.embodiment]):
                if name not in observation.images:
                    continue
                if name in values:
                    out[i, v], known[i, v] = values[name], True
                else:
                    lacking = True
        if not known.any():
            return None, None
        return torch.from_numpy(out), torch.from_numpy(known) if lacking else None

    def _cameras(self, observations: Sequence[Observation]) -> Cameras:
        shapes = {"intrinsics": (3, 3), "extrinsics": (4, 4), "depth": self.size}
        stacked = {kind: self._stack(observations, kind, shape) for kind, shape in shapes.items()}
        values = {kind: value for kind, (value, _) in stacked.items()}
        known = Known(**{kind: which for kind, (_, which) in stacked.items()})
        return Cameras(values["intrinsics"], values["extrinsics"], values["depth"], known)
