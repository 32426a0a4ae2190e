"""From a resolved framework to pipelines and to the model: no data sets, no checkpoints.

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vla_core.answers import FittedHead
from vla_core.auxiliary import Auxiliary, AuxiliaryDims
from vla_core.config import to_plain
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig as FrameworkConfig
from vla_core.initialisation import without_random_init
from vla_core.interfaces import ActionHead, Fusion, FusionDims, GeometryEncoder, HeadDims, VLMDims
from vla_core.model import VLAModel
from vla_core.resolve import Part, Resolved
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.transforms import Pipeline


def build_pipelines(
    resolved: Resolved,
    specs: Mapping[str, RobotSpec],
    statistics: Mapping[str, NormStats] | None = None,
) -> dict[str, Pipeline]:
    """One pipeline an embodiment.

    Args:
        resolved: the framework.
        specs: embodiment -> raw robot spec (its horizon must be the framework's).
        statistics: embodiment -> statistics at the normalisation step; absent: those of the spec, where no
            earlier step changes what they describe.

    Raises:
        ConfigError: naming the key and the fix.
    """
    check_robots(resolved, specs)
    out = {}
    for name, spec in specs.items():
        nodes, where = resolved.config.transforms_of(name)
        out[name] = Pipeline(
            nodes, spec, statistics=(statistics or {}).get(name), where=where, tree=resolved.tree
        )
    return out


def check_robots(resolved: Resolved, specs: Mapping[str, RobotSpec]) -> None:
    """Raise :class:`ConfigError` where the framework and the robots (embodiment -> raw spec) do not agree."""
    config = resolved.config
    for name in config.embodiments:
        if name not in specs:
            raise ConfigError(
                f"{resolved.place(f'framework.embodiments.{name}')}framework.embodiments: there is no robot "
                f"'{name}' here (robots: {', '.join(specs)})"
            )
    for name, spec in specs.items():
        if spec.action.horizon != config.horizon:
            raise ConfigError(
                f"{resolved.place('framework.horizon')}embodiment '{name}' has horizon "
                f"{spec.action.horizon}, framework.horizon is {config.horizon}"
            )


def resolved_config(resolved: Resolved, pipelines: Mapping[str, Pipeline]) -> dict[str, Any]:
    """The plain ``framework`` section with every default written out, as a checkpoint keeps it."""
    config = resolved.config
    common = [pipeline.nodes for name, pipeline in pipelines.items() if name not in config.embodiments]
    own = {name: {"transforms": pipelines[name].nodes} for name in config.embodiments}
    complete = replace(config, transforms=common[0] if common else config.transforms, embodiments=own)
    plain: dict[str, Any] = to_plain(complete)
    return plain


@dataclass(frozen=True)
class ModelDims:
    """Sizes a model takes from its robots, after their pipelines; never config.

    Args:
        n_views: V, cameras of the robot that has most.
        image_size: (H, W) in pixels, the same for all cameras.
        action_dim, state_dim: A and D of the largest robot.
        horizon: T.
        n_embodiments: robots.
    """

    n_views: int
    image_size: tuple[int, int]
    action_dim: int
    state_dim: int
    horizon: int
    n_embodiments: int

    @classmethod
    def of(cls, pipelines: Mapping[str, Pipeline], resolved: Resolved) -> ModelDims:
        """The sizes that hold all robots.

        Raises:
            ConfigError: no camera, or cameras of different sizes.
        """
        outputs = [pipeline.output_spec for pipeline in pipelines.values()]
        cameras = [camera for spec in outputs for camera in spec.observation.cameras]
        sizes = sorted({(camera.height, camera.width) for camera in cameras})
        if not cameras:
            raise ConfigError("the robot spec has no camera; a policy needs at least one")
        if len(sizes) > 1:
            raise ConfigError(
                f"{resolved.place('framework.transforms')}cameras have different sizes {sizes}; add "
                "{name: resize, height: ..., width: ...} to framework.transforms"
            )
        return cls(
            n_views=max(len(spec.observation.cameras) for spec in outputs),
            image_size=sizes[0],
            action_dim=max(spec.action.dim for spec in outputs),
            state_dim=max(spec.observation.state_dim for spec in outputs),
            horizon=resolved.config.horizon,
            n_embodiments=len(outputs),
        )


def build_model(
    resolved: Resolved,
    dims: ModelDims,
    *,
    device: torch.device | str | None = None,
    random_init: bool = True,
    assets: Path | None = None,
    head_assets: Path | None = None,
) -> VLAModel:
    """Build the network, with its parameters where they will live.

    Args:
        resolved: the framework.
        dims: sizes of the robots.
        device: where parameters are made (None: torch's default device); pretrained weights stream there file
            by file. ``meta`` makes shapes alone.
        random_init: False leaves parameters that nothing loads unset: only for a caller that assigns all of
            them afterwards (it saves minutes at 3B on a CPU).
        assets: directory of a checkpoint; then no pretrained weights are looked for.
        head_assets: what a :class:`~vla_core.answers.FittedHead` learned.

    Raises:
        ConfigError: naming the key and the fix.
    """
    init: AbstractContextManager[object] = nullcontext() if random_init else without_random_init()
    where: AbstractContextManager[object] = nullcontext() if device is None else torch.device(device)
    with where, init:
        return _build(resolved, dims, assets, head_assets)


def _build(resolved: Resolved, dims: ModelDims, assets: Path | None, head_assets: Path | None) -> VLAModel:
    vlm = resolved.vlm.cls.build(resolved.vlm.config, dims.n_views, dims.image_size, assets=assets)
    sizes: VLMDims = vlm.dims
    encoder, fusion = _build_geometry(resolved, dims, sizes, weights=assets is None)
    head_dims = HeadDims(
        hidden_size=sizes.hidden_size,
        n_layers=sizes.n_layers,
        action_dim=dims.action_dim,
        horizon=dims.horizon,
        state_dim=dims.state_dim,
        n_embodiments=dims.n_embodiments,
        context_dim=fusion.context_dim if fusion is not None else None,
        kv=sizes.kv,
    )
    head = resolved.head.cls.build(resolved.head.config, head_dims)
    if isinstance(head, FittedHead):
        if head_assets is None:
            raise ValueError(f"'{resolved.head.name}' learns from data: fit it first (vla_core.fitting)")
        head.load_assets(head_assets)
    _check_request(head, sizes, resolved)
    if head.prompt.answer_ids is not None:
        vlm.add_answers(head.prompt.answer_ids)
    auxiliary = None
    if resolved.auxiliary is not None:
        auxiliary = _build_auxiliary(resolved, resolved.auxiliary, dims, sizes, head, encoder)
    return VLAModel(vlm, head, encoder, fusion, auxiliary)


def _build_geometry(
    resolved: Resolved, dims: ModelDims, sizes: VLMDims, weights: bool
) -> tuple[GeometryEncoder | None, Fusion | None]:
    geometry, fusion = resolved.geometry, resolved.fusion
    if geometry is None or fusion is None:
        return None, None
    encoder: GeometryEncoder = geometry.cls.build(
        geometry.config, dims.n_views, dims.image_size, weights=weights
    )
    fuse: Fusion = fusion.cls.build(
        fusion.config, FusionDims(sizes.hidden_size, encoder.dim, sizes.n_layers, sizes.grid)
    )
    missing = sorted(fuse.needs - encoder.traits.provides)
    if missing:
        raise ConfigError(
            f"{resolved.place('framework.fusion.name')}framework.fusion: '{fusion.name}' needs "
            f"{' and '.join(missing)}, which framework.geometry '{geometry.name}' does not give; "
            "choose another fusion or geometry encoder"
        )
    return encoder, fuse


def _check_request(head: ActionHead, dims: VLMDims, resolved: Resolved) -> None:
    requests = head.request("train"), head.request("sample")
    asked = head.prompt.answer_ids is not None or any(r.logits != "none" or r.decoder for r in requests)
    if asked and not dims.decoder:
        raise ConfigError(
            f"{resolved.place('framework.vlm.name')}framework.vlm: '{resolved.vlm.name}' has no decoder, and "
            f"framework.head '{resolved.head.name}' speaks through one; choose another backbone "
            "(qwen2_5_vl, qwen3_vl, llava3d) or a head that reads hidden states"
        )


def _build_auxiliary(
    resolved: Resolved,
    part: Part,
    dims: ModelDims,
    sizes: VLMDims,
    head: ActionHead,
    encoder: GeometryEncoder | None,
) -> Auxiliary | None:
    layers = head.request("train").layers
    auxiliary_dims = AuxiliaryDims(
        hidden_size=sizes.hidden_size,
        n_layers=sizes.n_layers,
        top_layer=max(layers, default=sizes.n_layers),
        grid=sizes.grid,
        n_views=dims.n_views,
        action_dim=dims.action_dim,
        horizon=dims.horizon,
        geometry_dim=None if encoder is None else encoder.dim,
    )
    # Its initial weights draw from a copy of the generator: everything after has the same random numbers
    # as without it, so that two runs differ by what it teaches alone.
    with torch.random.fork_rng(devices=[]):
        try:
            built: Auxiliary | None = part.cls.build(part.config, auxiliary_dims)
        except ConfigError as error:
            place = resolved.place("framework.auxiliary")
            raise ConfigError(f"{place}framework.auxiliary: {error}") from error
    return built
