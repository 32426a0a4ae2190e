"""The whole model: backbone, optional geometry and fusion, and head; plus what goes around it.

Shape legend: B rows, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_core.auxiliary import Auxiliary, AuxiliaryInputs
from vla_core.batch import Batch, Cameras
from vla_core.collate import PolicyCollator
from vla_core.errors import UserError, suggest
from vla_core.interfaces import (
    ActionHead,
    Constraint,
    Fused,
    Fusion,
    GeometryEncoder,
    GeometryFeatures,
    HeadInputs,
    PromptSpec,
    Terms,
    VisionLanguageModel,
    VisualTokens,
    VLMOutput,
    VLMRequest,
)
from vla_core.overlap import side_by_side
from vla_core.realtime import make_constraint
from vla_core.specs import CameraSpec, RobotSpec
from vla_core.transforms import Pipeline
from vla_core.types import ActionChunk, Observation, PreviousChunk, Sample


class VLAPolicy(nn.Module):
    """A Vision-Language-Action policy.

    Args:
        vlm: the backbone.
        head: the action head.
        geometry, fusion: both or neither.
        auxiliary: losses of training alone.
        pipelines: embodiment -> transforms between the robot's units and the model's; needed by
            :meth:`act` and by checkpoints, not by :meth:`forward`.
        config: the resolved ``framework`` section, written into checkpoints.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        head: ActionHead,
        geometry: GeometryEncoder | None = None,
        fusion: Fusion | None = None,
        *,
        auxiliary: Auxiliary | None = None,
        pipelines: Mapping[str, Pipeline] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (geometry is None) != (fusion is None):
            raise ValueError("a policy has both a geometry encoder and a fusion, or neither")
        self.vlm, self.head, self.geometry, self.fusion = vlm, head, geometry, fusion
        self.auxiliary = auxiliary
        self.pipelines = dict(pipelines or {})
        self.config = dict(config or {})
        self.collator: PolicyCollator | None = None
        if self.pipelines:
            outputs = {name: p.output_spec for name, p in self.pipelines.items()}
            prompt = self.prompt
            answers = prompt.answer_ids is not None
            self.collator = PolicyCollator(vlm.collator(prompt), outputs, answers)

    @property
    def prompt(self) -> PromptSpec:
        """What head and fusion together want in the prompt."""
        return self.head.prompt if self.fusion is None else self.fusion.prompt | self.head.prompt

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
        """Shape of a row's noise for :meth:`predict`: (T, A), or (T, noise_dim) of a head that says so."""
        if self.collator is None:
            raise ValueError("this policy has no pipelines; build it with build_policy or from_pretrained")
        return self.collator.horizon, getattr(self.head, "noise_dim", self.collator.action_dim)

    def _encode(
        self, batch: Batch, request: VLMRequest, train: bool
    ) -> tuple[VLMOutput, Fused, GeometryFeatures | None]:
        text = self.vlm.embed_text(batch)
        geometry, fusion = self.geometry, self.fusion
        if geometry is None or fusion is None or (fusion.train_only and not train):
            visual = self.vlm.embed_images(batch.images, batch.view_mask)
            return self.vlm(text, visual, None, request), Fused(visual), None
        cameras = batch.cameras
        if not batch.tokens.all_views:
            cameras = replace(cameras or Cameras(), view_mask=batch.view_mask)
        request = request | fusion.request

        # What a fusion leaves as it is need not wait for it: then geometry runs beside the whole backbone.
        bypass = getattr(fusion, "bypasses_backbone", False)

        def encode() -> GeometryFeatures:
            if train or getattr(fusion, "reads_geometry", True):
                return geometry(batch.images, cameras, fusion.needs)
            nothing = (*batch.images.shape[:2], 0, 0, geometry.dim)
            return GeometryFeatures(torch.empty(nothing, device=batch.images.device))

        def backbone() -> tuple[VisualTokens, VLMOutput | None]:
            visual = self.vlm.embed_images(batch.images, batch.view_mask)
            return visual, self.vlm(text, visual, None, request) if bypass else None

        features, (visual, out) = side_by_side(encode, backbone, batch.images.device)
        features = replace(features, view_mask=batch.view_mask)
        fused = fusion(visual, features, text, cameras)
        if out is None:
            out = self.vlm(text, fused.visual, fused.prefix, request)
        elif fused.visual is not visual or fused.prefix is not None:
            raise ValueError("a fusion that bypasses the backbone must return the visual tokens it was given")
        return out, fused, features

    def _inputs(self, batch: Batch, out: VLMOutput, fused: Fused) -> HeadInputs:
        # A dim is padding if no step of it is real; a step beyond an episode's end is none here.
        dims = None if batch.action_mask is None else batch.action_mask.any(dim=1)
        return HeadInputs(out, fused.context, batch.state, batch.state_mask, batch.embodiment, dims)

    def forward(
        self, batch: Batch, noise: Tensor | None = None, time: Tensor | None = None, auxiliary: bool = True
    ) -> Terms:
        """Named, unweighted loss terms of a batch with targets.

        Args:
            batch: with ``future`` if the auxiliary needs it.
            noise, time: the head's own.
            auxiliary: False leaves the auxiliary's terms out; then they cost nothing.
        """
        if batch.actions is None or batch.action_mask is None:
            raise ValueError("a training batch needs actions and action_mask")
        request = self.head.request("train")
        if self.auxiliary is not None and auxiliary:
            request = request | self.auxiliary.request
        out, fused, features = self._encode(batch, request, train=True)
        inputs = self._inputs(batch, out, fused)
        terms = dict(self.head(inputs, batch.actions, batch.action_mask, noise, time))
        if self.fusion is not None and features is not None:
            terms.update(self.fusion.loss(out, features))
        if self.auxiliary is not None:
            if auxiliary:
                future = self._future(batch, self.auxiliary, request)
                terms.update(self.auxiliary(AuxiliaryInputs(out, batch, features, future)))
            elif torch.is_grad_enabled():
                first = next(iter(terms))
                terms[first] = terms[first] + self.auxiliary(None)["idle"]
        return terms

    def _future(self, batch: Batch, auxiliary: Auxiliary, request: VLMRequest) -> VLMOutput | None:
        """What the backbone makes of the observation at the chunk's end: a target, without gradient.

        Only after the pass with gradient: autocast keeps the first cast of each weight for the whole forward,
        and one made without gradient would cut the weight off.
        """
        if "future" not in auxiliary.needs:
            return None
        if batch.future is None:
            raise ValueError("the auxiliary needs batch.future; collate the samples with future=True")
        wanted = VLMRequest(layers=auxiliary.request.layers, queries=request.queries)
        with torch.no_grad():
            return self._encode(batch.future, wanted, train=False)[0]

    def predict(
        self, batch: Batch, noise: Tensor, steps: int | None = None, constraint: Constraint | None = None
    ) -> Tensor:
        """Normalised actions ``[B, T, A]`` from per-row noise, float32 of :attr:`noise_shape`.

        ``constraint``: what of an earlier chunk to keep (real-time chunking).

        Raises:
            UserError: a constraint, and a head that cannot keep one.
        """
        if constraint is not None:
            self._check_keeps()
        out, fused, _ = self._encode(batch, self.head.request("sample"), train=False)
        inputs = self._inputs(batch, out, fused)
        if constraint is None:
            return self.head.sample(inputs, noise, steps)
        sample: Callable[..., Tensor] = self.head.sample
        return sample(inputs, noise, steps, constraint=constraint)

    def _check_keeps(self) -> None:
        if not getattr(self.head, "takes_constraint", False):
            raise UserError(
                f"previous chunk: a {type(self.head).__name__} cannot keep the start of an earlier chunk "
                "(real-time chunking); leave it out, or use a flow-matching head"
            )

    def longest_delay(self, embodiment: str) -> int:
        """Most steps that a ``previous`` chunk of :meth:`act` may have frozen.

        Raises:
            UserError: the head can keep none (it is named), or no such embodiment.
        """
        self._check_keeps()
        below = self._pipeline(embodiment).input_spec.action.horizon - 1
        limit: int | None = getattr(self.head, "longest_delay", None)
        return below if limit is None else min(limit, below)

    def check_view_keys(self) -> None:
        """Raise :class:`UserError` unless :meth:`act` takes ``view_keys``."""
        fusion = self.fusion
        if fusion is None or fusion.train_only or not getattr(fusion, "reads_geometry", True):
            raise UserError("view_keys: given, but this policy computes no geometry; leave them out")
        if getattr(self.geometry, "cache", None) is None:
            raise UserError(
                "view_keys: given, but the geometry encoder has no cache; set geometry.cache_mib "
                "(of a trained policy: from_pretrained(cache_mib=...), vla-serve --cache_mib)"
            )

    def collate(self, observations: Sequence[Observation]) -> Batch:
        """The inference batch of raw observations: pipeline, then collator.

        Raises:
            UserError: an observation that does not fit its embodiment's spec, naming the field.
        """
        if self.collator is None:
            raise ValueError("this policy has no pipelines; build it with build_policy or from_pretrained")
        samples = []
        for observation in observations:
            pipeline = self._pipeline(observation.embodiment)
            check_fits(observation, pipeline.input_spec)
            action = pipeline.output_spec.action
            empty = np.zeros((action.horizon, action.dim), np.float32)
            samples.append(Sample(pipeline.observe(observation), empty, np.zeros(empty.shape, np.bool_)))
        return self.collator(samples, actions=False)

    def _pipeline(self, embodiment: str) -> Pipeline:
        if embodiment not in self.pipelines:
            raise UserError(f"no embodiment '{embodiment}' here{suggest(embodiment, self.pipelines)}")
        return self.pipelines[embodiment]

    @torch.inference_mode()
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
            view_keys: for each row camera name -> key of its picture, for cameras that stand still before
                a scene that does not change. What a geometry encoder with a cache (``cache_mib``) knows of
                a key is not computed again, and the picture that comes with it is not looked at.
            previous: for each row what is left of the chunk being executed, or None: the answer keeps its
                frozen steps exactly and goes on from them (real-time chunking).

        Raises:
            UserError: observations, keys or a previous chunk that do not fit, naming the field.
        """
        if len(seeds) != len(observations):
            raise ValueError(f"{len(observations)} observations need as many seeds, got {len(seeds)}")
        if previous is not None and len(previous) != len(observations):
            raise ValueError(f"{len(observations)} observations need as many previous chunks (or None)")
        if not observations:
            return []
        if self.training:
            raise ValueError("call policy.eval() before act(): dropout would make answers random")
        batch = self.collate(observations)
        assert self.collator is not None
        if view_keys is not None:
            self.check_view_keys()
            keys = self.collator.view_keys(observations, view_keys)
            batch.cameras = replace(batch.cameras or Cameras(), view_keys=keys)
        shape = (self.collator.horizon, self.collator.action_dim)
        # On the CPU whatever the device: the same seed gives the same noise everywhere.
        noise = torch.stack(
            [
                torch.randn(self.noise_shape, generator=torch.Generator().manual_seed(int(seed)))
                for seed in seeds
            ]
        )
        device = next(self.parameters()).device
        pipelines = [self._pipeline(observation.embodiment) for observation in observations]
        left = previous or [None] * len(observations)
        constraint = None
        if any(chunk is not None for chunk in left):
            constraint = make_constraint(left, observations, pipelines, *shape).to(device)
        predicted = self.predict(batch.to(device), noise.to(device), steps, constraint)
        actions_BTA = predicted.float().cpu().numpy()
        chunks = []
        for row, (observation, pipeline) in enumerate(zip(observations, pipelines, strict=True)):
            inner = pipeline.output_spec.action
            actions = pipeline.inverse(actions_BTA[row, : inner.horizon, : inner.dim], observation.state)
            kept = left[row]
            if kept is not None:
                # What is executed already is what it is, also where normalisation clips or rounds.
                actions[: kept.n_frozen] = kept.actions[: kept.n_frozen]
            chunks.append(ActionChunk(actions, pipeline.input_spec.action))
        return chunks

    @staticmethod
    def from_pretrained(
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache_mib: int | None = None,
    ) -> VLAPolicy:
        """Load a checkpoint directory (``.../checkpoints/steps_N``) or the weights file inside it.

        ``cache_mib``: MiB of the geometry encoder's cache (``view_keys`` of :meth:`act`); None: as trained.
        """
        from vla_core.checkpoint import load_policy

        return load_policy(Path(path), device, dtype, cache_mib)


def check_fits(observation: Observation, spec: RobotSpec) -> None:
    """Raise :class:`UserError` naming the field of ``observation`` that does not fit ``spec``."""
    for camera in spec.observation.cameras:
        if camera.name not in observation.images:
            raise UserError(f"camera '{camera.name}' is missing; got {sorted(observation.images)}")
    check_views(observation, spec)
    _check_finite(observation)
    dim = spec.observation.state_dim
    if dim == 0:
        if observation.state is not None:
            raise UserError("state was given, and this policy takes none")
        return
    if observation.state is None:
        raise UserError(f"state is missing; this policy needs {dim} dims")
    if observation.state.shape != (dim,):
        raise UserError(f"state: expected shape ({dim},), got {observation.state.shape}")
    if not np.isfinite(observation.state).all():
        raise UserError("state holds NaN or infinity")


def check_views(observation: Observation, spec: RobotSpec) -> None:
    """As :func:`check_fits`, of the images, depth and calibration that are there: a view may be missing."""
    cameras = {camera.name: camera for camera in spec.observation.cameras}
    for name, image in observation.images.items():
        if name not in cameras:
            raise UserError(f"camera '{name}' is not in the spec{_known(spec)}")
        camera = cameras[name]
        if image.dtype != np.uint8 or image.shape != (camera.height, camera.width, 3):
            raise UserError(
                f"camera '{name}': expected uint8 ({camera.height}, {camera.width}, 3), "
                f"got {image.dtype} {image.shape}"
            )
        _check_geometry(observation, camera)


def _check_geometry(observation: Observation, camera: CameraSpec) -> None:
    shapes = {"depth": (camera.height, camera.width), "intrinsics": (3, 3), "extrinsics": (4, 4)}
    for field, shape in shapes.items():
        value = (getattr(observation, field) or {}).get(camera.name)
        if value is not None and np.shape(value) != shape:
            raise UserError(f"{field} of camera '{camera.name}': expected {shape}, got {np.shape(value)}")


def _check_finite(observation: Observation) -> None:
    # Depth may hold NaN or infinity where a sensor saw nothing; a pose may not.
    for field in ("intrinsics", "extrinsics"):
        for name, value in (getattr(observation, field) or {}).items():
            if not np.isfinite(value).all():
                raise UserError(f"{field} of camera '{name}' holds NaN or infinity")


def _known(spec: RobotSpec) -> str:
    return f" (known: {', '.join(c.name for c in spec.observation.cameras)})"
