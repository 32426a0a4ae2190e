"""A model and what goes around it: robots, their pipelines, and the way from observations to actions.

Shape legend: B rows, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_core.answers import FittedHead
from vla_core.batch import Batch, Cameras
from vla_core.build import ModelDims, build_model, build_pipelines, resolved_config
from vla_core.checkpoint import HEAD_ASSETS, Robot, read_checkpoint, write_checkpoint
from vla_core.checks import check_fits
from vla_core.collate import PolicyCollator
from vla_core.errors import UserError, suggest
from vla_core.model import VLAModel
from vla_core.realtime import make_constraint
from vla_core.resolve import resolve
from vla_core.rows import Prepared, Row
from vla_core.specs import RobotSpec
from vla_core.transforms import Pipeline
from vla_core.types import ActionChunk, Float, Observation, PreviousChunk, Sample
from vla_core.weights import assign_weights, load_weights


class VLAPolicy:
    """A Vision-Language-Action policy: a model, and a pipeline for each robot.

    A request is answered in three steps that a server may run in different threads: :meth:`prepare` (CPU),
    :meth:`predict` (the model), :meth:`finish` (CPU). :meth:`act` is all three.

    Args:
        model: the network; all that is trained, moved or compiled is in it.
        pipelines: embodiment -> transforms between the robot's units and the model's.
        config: the resolved ``framework`` section, written into checkpoints.
    """

    def __init__(
        self, model: VLAModel, pipelines: Mapping[str, Pipeline], config: Mapping[str, Any] | None = None
    ) -> None:
        if not pipelines:
            raise ValueError("a policy needs at least one pipeline")
        self.model = model
        self.pipelines = dict(pipelines)
        self.config = dict(config or {})
        outputs = {name: pipeline.output_spec for name, pipeline in self.pipelines.items()}
        prompt = model.prompt
        answers = prompt.answer_ids is not None
        self.collator = PolicyCollator(model.vlm.collator(prompt), outputs, answers)

    @property
    def specs(self) -> dict[str, RobotSpec]:
        """Embodiment -> raw spec: what :meth:`act` takes and answers."""
        return {name: pipeline.input_spec for name, pipeline in self.pipelines.items()}

    @property
    def framework(self) -> str:
        """Name of the framework, e.g. ``QwenPI``."""
        return str(self.config.get("name", "custom"))

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of a row's noise: (T, A), or (T, ``noise_dim``) of a head that says so."""
        own = self.model.head.traits.noise_dim
        return self.collator.horizon, self.collator.action_dim if own is None else own

    def eval(self) -> VLAPolicy:
        """Put the model into evaluation mode; returns the policy."""
        self.model.eval()
        return self

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VLAPolicy:
        """Move the model; returns the policy."""
        self.model.to(device=device, dtype=dtype)
        return self

    def _pipeline(self, embodiment: str) -> Pipeline:
        if embodiment not in self.pipelines:
            raise UserError(f"no embodiment '{embodiment}' here{suggest(embodiment, self.pipelines)}")
        return self.pipelines[embodiment]

    @property
    def camera_inputs(self) -> frozenset[str]:
        """What no batch can do without, of ``depth``, ``intrinsics`` and ``extrinsics``."""
        return self.model.camera_inputs

    def longest_delay(self, embodiment: str) -> int:
        """Most steps that a ``previous`` chunk may have frozen.

        Raises:
            UserError: the head can keep none (it is named), or no such embodiment.
        """
        self.model.check_keeps()
        below = self._pipeline(embodiment).input_spec.action.horizon - 1
        limit = self.model.head.traits.longest_delay
        return below if limit is None else min(limit, below)

    def check_view_keys(self) -> None:
        """Raise :class:`UserError` unless rows may have ``view_keys``."""
        geometry = self.model.geometry
        if geometry is None or not self.model.reads_geometry:
            raise UserError("view_keys: given, but this policy computes no geometry; leave them out")
        if not geometry.traits.caches_views:
            raise UserError(
                "view_keys: given, but the geometry encoder has no cache; set geometry.cache_mib "
                "(of a trained policy: from_pretrained(cache_mib=...), vla-serve --cache_mib)"
            )

    def collate(self, observations: Sequence[Observation]) -> Batch:
        """The inference batch of raw observations: pipeline, then collator.

        Raises:
            UserError: an observation that does not fit its embodiment's spec, naming the field.
        """
        samples = []
        for observation in observations:
            pipeline = self._pipeline(observation.embodiment)
            check_fits(observation, pipeline.input_spec)
            action = pipeline.output_spec.action
            empty = np.zeros((action.horizon, action.dim), np.float32)
            samples.append(Sample(pipeline.observe(observation), empty, np.zeros(empty.shape, np.bool_)))
        return self.collator(samples, actions=False)

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """All that the model reads of ``rows``: work for a CPU, safe in any thread.

        Raises:
            UserError: an observation, keys or a previous chunk that do not fit, naming the field.
        """
        observations = [row.observation for row in rows]
        batch = self.collate(observations)
        if any(row.view_keys is not None for row in rows):
            self.check_view_keys()
            keys = self.collator.view_keys(observations, [row.view_keys or {} for row in rows])
            batch.cameras = replace(batch.cameras or Cameras(), view_keys=keys)
        # On the CPU whatever the device: the same seed gives the same noise everywhere.
        noise = torch.stack(
            [
                torch.randn(self.noise_shape, generator=torch.Generator().manual_seed(int(row.seed)))
                for row in rows
            ]
        )
        constraint = None
        if any(row.previous is not None for row in rows):
            self.model.check_keeps()
            pipelines = [self._pipeline(observation.embodiment) for observation in observations]
            previous = [row.previous for row in rows]
            shape = (self.collator.horizon, self.collator.action_dim)
            constraint = make_constraint(previous, observations, pipelines, *shape)
        return Prepared(batch, noise, constraint)

    @torch.inference_mode()
    def predict(self, prepared: Prepared, steps: int | None = None) -> Tensor:
        """Normalised actions, float32 ``[B, T, A]`` on the CPU; ``steps`` None takes the head's own."""
        if self.model.training:
            raise ValueError("call policy.eval() before act(): dropout would make answers random")
        on_device = prepared.to(self.model.device)
        actions = self.model.predict(on_device.batch, on_device.noise, steps, on_device.constraint)
        return actions.float().cpu()

    def finish(self, actions: Tensor, rows: Sequence[Row]) -> list[ActionChunk]:
        """Chunks in real units of the normalised ``actions [B, T, A]`` that were predicted for ``rows``."""
        actions_BTA: Float = actions.numpy()
        chunks = []
        for answer_TA, row in zip(actions_BTA, rows, strict=True):
            pipeline = self._pipeline(row.observation.embodiment)
            inner = pipeline.output_spec.action
            real = pipeline.inverse(answer_TA[: inner.horizon, : inner.dim], row.observation.state)
            kept = row.previous
            if kept is not None:
                # What is executed already is what it is, also where normalisation clips or rounds.
                real[: kept.n_frozen] = kept.actions[: kept.n_frozen]
            chunks.append(ActionChunk(real, pipeline.input_spec.action))
        return chunks

    def act(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        steps: int | None = None,
        view_keys: Sequence[Mapping[str, str]] | None = None,
        previous: Sequence[PreviousChunk | None] | None = None,
    ) -> list[ActionChunk]:
        """Un-normalised action chunks for raw observations.

        Args:
            observations: one per row, in real units.
            seeds: one per row; a row's answer depends on its own observation and seed alone.
            steps: denoise steps; None takes the head's own.
            view_keys, previous: one per row, see :class:`~vla_core.rows.Row`.

        Raises:
            UserError: observations, keys or a previous chunk that do not fit, naming the field.
        """
        n = len(observations)
        if len(seeds) != n:
            raise ValueError(f"{n} observations need as many seeds, got {len(seeds)}")
        if previous is not None and len(previous) != n:
            raise ValueError(f"{n} observations need as many previous chunks (or None)")
        if view_keys is not None and len(view_keys) != n:
            raise UserError(f"view_keys: {len(view_keys)} rows for {n} observations")
        if not observations:
            return []
        keys = view_keys if view_keys is not None else [None] * n
        left = previous if previous is not None else [None] * n
        rows = [Row(*row) for row in zip(observations, seeds, keys, left, strict=True)]
        return self.finish(self.predict(self.prepare(rows), steps), rows)

    def save(
        self,
        directory: Path,
        *,
        step: int,
        config: Mapping[str, Any] | None = None,
        weights: Literal["safetensors", "pt"] = "safetensors",
        state: Mapping[str, Tensor] | None = None,
        data_digest: str = "",
    ) -> Path:
        """Write a checkpoint, atomically.

        Args:
            directory: final name, e.g. ``<run>/checkpoints/steps_1000``; replaced if it exists.
            step: optimisation step.
            config: the other sections of the run's config, kept for reference and for resuming.
            weights: file format.
            state: the weights, where the model wears what a plain one has not (adapters, shards); None: its
                own.
            data_digest: SHA-256 of the numbers it was trained on, in hex; empty: unknown.
        """
        return write_checkpoint(
            directory,
            state=self.model.state_dict() if state is None else state,
            config={**(config or {}), "framework": self.config},
            robots={n: Robot(p.input_spec, p.statistics) for n, p in self.pipelines.items()},
            save_assets=self._save_assets,
            step=step,
            weights=weights,
            data_digest=data_digest,
        )

    def _save_assets(self, assets: Path) -> None:
        self.model.vlm.save_assets(assets)
        if isinstance(self.model.head, FittedHead):
            (assets / HEAD_ASSETS).mkdir()
            self.model.head.save_assets(assets / HEAD_ASSETS)

    @staticmethod
    def from_pretrained(
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache_mib: int | None = None,
    ) -> VLAPolicy:
        """Load a checkpoint directory (``.../checkpoints/steps_N``) or the weights file inside it.

        ``cache_mib``: MiB of the geometry encoder's cache (``Row.view_keys``); None: as trained.

        Raises:
            UserError: not a checkpoint, of a newer format, truncated, or weights that do not fit; a cache for
                a policy without geometry, or for an encoder that has none.
        """
        stored = read_checkpoint(Path(path), warn=True)
        if not stored.robots:
            raise UserError(
                f"{stored.directory}: a backbone alone (trainer.job: vlm), without a robot and a head; "
                "train a policy from it with trainer.pretrained_checkpoint and trainer.reload_modules=[vlm]"
            )
        # An auxiliary only trains: its weights stay in the file, for runs that start from this one.
        config = replace(stored.framework, auxiliary=None)
        if cache_mib is not None:
            if not config.has_geometry or config.geometry is None:
                raise UserError("cache_mib: given, but this policy has no geometry encoder; leave it out")
            config = replace(config, geometry={**config.geometry, "cache_mib": cache_mib})
        resolved = resolve(config)
        specs = {name: robot.spec for name, robot in stored.robots.items()}
        statistics = {name: robot.statistics for name, robot in stored.robots.items()}
        pipelines = build_pipelines(resolved, specs, statistics)
        head_assets = stored.assets / HEAD_ASSETS
        model = build_model(
            resolved,
            ModelDims.of(pipelines, resolved),
            device=device,
            random_init=False,
            assets=stored.assets,
            head_assets=head_assets if head_assets.is_dir() else None,
        )
        state = load_weights(stored.weights, device)
        weights = {name: value for name, value in state.items() if not name.startswith("auxiliary.")}
        assign_weights(model, weights, stored.weights)
        model = model.to(device=device, dtype=dtype)
        return VLAPolicy(model, pipelines, resolved_config(resolved, pipelines)).eval()
