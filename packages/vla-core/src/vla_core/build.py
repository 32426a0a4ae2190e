"""Composes a policy from the resolved ``framework`` config; the checkpoint stores that very config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from vla_core import registry
from vla_core.answers import Chunks, FittedHead
from vla_core.auxiliary import Auxiliary, AuxiliaryDims
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError
from vla_core.interfaces import (
    ActionHead,
    Fusion,
    FusionDims,
    GeometryEncoder,
    HeadDims,
    VLMDims,
)
from vla_core.policy import VLAPolicy
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.transforms import Pipeline
from vla_core.transforms.base import Floats
from vla_core.transforms.pipeline import Rows
from vla_core.types import Bool

HEAD_ASSETS = "head"
"""The folder below a checkpoint's assets for what a :class:`~vla_core.interfaces.FittedHead` learned."""


@dataclass(frozen=True)
class FrameworkConfig:
    """The ``framework`` section.

    Args:
        name: the preset (see ``vla-train --list``), or any name of one's own.
        horizon: T, the number of action steps of a chunk.
        vlm, head: ``{name: <entry point>, **its Config}``.
        geometry, fusion: likewise, or null.
        auxiliary: losses of training alone, likewise, or null.
        use_geometric_branch: true demands geometry and fusion, false leaves them out, null uses
            them if they are given.
        transforms: the pipeline, one ``{name: ..., **its Config}`` a step.
    """

    name: str = "custom"
    horizon: int = 16
    vlm: dict[str, Any] = field(default_factory=lambda: MISSING)
    head: dict[str, Any] = field(default_factory=lambda: MISSING)
    geometry: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    auxiliary: dict[str, Any] | None = None
    use_geometric_branch: bool | None = None
    transforms: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ConfigError(f"framework.horizon must be at least 1, got {self.horizon}")

    @property
    def has_geometry(self) -> bool:
        """Whether the policy has a geometric branch.

        Raises:
            ConfigError: only one of geometry and fusion, or a branch demanded but not configured.
        """
        given = self.geometry is not None and self.fusion is not None
        if self.use_geometric_branch is False:
            return False
        if self.use_geometric_branch and not given:
            raise ConfigError(
                "framework.use_geometric_branch is true, so framework.geometry and framework.fusion "
                "must both be set, e.g. geometry: {name: tiny}, fusion: {name: aligned_concat}"
            )
        if (self.geometry is None) != (self.fusion is None):
            missing = "fusion" if self.fusion is None else "geometry"
            raise ConfigError(f"framework.{missing} is not set, and the other one is; set both or neither")
        return given


@dataclass(frozen=True)
class Part:
    """A part's class, its validated config and the plain node that gives it again."""

    cls: Any
    config: Any
    node: dict[str, Any]


def _place(tree: Tree | None, key: str) -> str:
    return tree.where(key) if tree else ""


def resolve_part(group: str, node: Mapping[str, Any], where: str, tree: Tree | None = None) -> Part:
    """Look up ``node['name']`` in ``group`` and validate the rest against its ``Config``."""
    place = _place(tree, where)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{place}'{where}' must be set, e.g. {where.rpartition('.')[2]}: {{name: ...}}")
    name = node.get("name")
    if not isinstance(name, str):
        raise ConfigError(
            f"{place}'{where}.name' must name a part (known: {', '.join(registry.names(group))})"
        )
    try:
        cls = registry.load(group, name)
    except ConfigError as error:
        raise ConfigError(f"{_place(tree, f'{where}.name')}{where}.name: {error}") from error
    config = build_config(cls.Config, {k: v for k, v in node.items() if k != "name"}, where, tree)
    return Part(cls, config, {"name": name, **to_plain(config)})


def _check_needs(
    encoder: GeometryEncoder, fuse: Fusion, geometry: Part, fusion: Part, tree: Tree | None
) -> None:
    """An encoder whose ``provides`` is set gives no other dense outputs; one without it checks for itself."""
    missing = sorted(fuse.needs - getattr(encoder, "provides", fuse.needs))
    if missing:
        raise ConfigError(
            f"{_place(tree, 'framework.fusion.name')}framework.fusion: '{fusion.node['name']}' needs "
            f"{' and '.join(missing)}, which framework.geometry '{geometry.node['name']}' does not give; "
            "choose another fusion or geometry encoder"
        )


def _chunks(pipelines: Mapping[str, Pipeline], rows: Mapping[str, Rows] | None) -> Chunks | None:
    if not rows:
        return None

    def chunks() -> Iterator[tuple[Floats, Bool]]:
        for name, embodiment in rows.items():
            for state, actions, mask in embodiment():
                yield pipelines[name].targets(state, actions, mask)

    return chunks


def _check_request(head: ActionHead, dims: VLMDims, names: tuple[Part, Part], tree: Tree | None) -> None:
    requests = head.request("train"), head.request("sample")
    asked = head.prompt.answer_ids is not None or any(r.logits != "none" or r.decoder for r in requests)
    if asked and not dims.decoder:
        head_name, vlm_name = (part.node["name"] for part in names)
        raise ConfigError(
            f"{_place(tree, 'framework.vlm.name')}framework.vlm: '{vlm_name}' has no decoder, and "
            f"framework.head '{head_name}' speaks through one; choose another backbone "
            "(qwen2_5_vl, qwen3_vl, llava3d) or a head that reads hidden states"
        )


def _build_auxiliary(part: Part, dims: AuxiliaryDims, tree: Tree | None) -> Auxiliary | None:
    # Its initial weights draw from a copy of the generator: everything after has the same random numbers
    # as without it, so that two runs differ by what it teaches alone.
    with torch.random.fork_rng(devices=[]):
        try:
            built: Auxiliary | None = part.cls.build(part.config, dims)
        except ConfigError as error:
            raise ConfigError(f"{_place(tree, 'framework.auxiliary')}framework.auxiliary: {error}") from error
    return built


def _views_and_size(pipelines: Mapping[str, Pipeline], place: str) -> tuple[int, tuple[int, int]]:
    cameras = [c for p in pipelines.values() for c in p.output_spec.observation.cameras]
    sizes = sorted({(c.height, c.width) for c in cameras})
    if not cameras:
        raise ConfigError("the robot spec has no camera; a policy needs at least one")
    if len(sizes) > 1:
        raise ConfigError(
            f"{place}cameras have different sizes {sizes}; add {{name: resize, height: ..., width: ...}} "
            "to framework.transforms"
        )
    return max(len(p.output_spec.observation.cameras) for p in pipelines.values()), sizes[0]


def build_policy(
    config: FrameworkConfig,
    specs: Mapping[str, RobotSpec],
    *,
    statistics: Mapping[str, NormStats] | None = None,
    rows: Mapping[str, Rows] | None = None,
    assets: Path | None = None,
    head_assets: Path | None = None,
    tree: Tree | None = None,
) -> VLAPolicy:
    """Build the policy that ``config`` names.

    Args:
        config: the resolved framework section.
        specs: embodiment -> raw robot spec (its horizon must be ``config.horizon``).
        statistics: embodiment -> statistics at the normalisation step (from a checkpoint).
        rows: embodiment -> low-dimensional rows to compute those statistics from.
        assets: directory written by a checkpoint; then no pretrained weights are looked for.
        head_assets: what a head learned in another run, instead of having it learn from ``rows`` (those
            in ``assets`` come first).
        tree: where the config comes from, for errors with file and line.

    Raises:
        ConfigError: naming the key and the fix.
    """
    vlm = resolve_part("vla.vlms", config.vlm, "framework.vlm", tree)
    head = resolve_part("vla.heads", config.head, "framework.head", tree)
    auxiliary = None
    if config.auxiliary is not None:
        auxiliary = resolve_part("vla.auxiliaries", config.auxiliary, "framework.auxiliary", tree)
    geometry = fusion = None
    try:
        branch = config.has_geometry
    except ConfigError as error:
        raise ConfigError(f"{_place(tree, 'framework.use_geometric_branch')}{error}") from error
    if branch:
        geometry = resolve_part("vla.geometry", config.geometry or {}, "framework.geometry", tree)
        fusion = resolve_part("vla.fusions", config.fusion or {}, "framework.fusion", tree)
    pipelines = {}
    for name, spec in specs.items():
        if spec.action.horizon != config.horizon:
            raise ConfigError(
                f"{_place(tree, 'framework.horizon')}embodiment '{name}' has horizon {spec.action.horizon}, "
                f"framework.horizon is {config.horizon}"
            )
        pipelines[name] = Pipeline(
            config.transforms,
            spec,
            statistics=(statistics or {}).get(name),
            rows=(rows or {}).get(name),
            tree=tree,
        )
    n_views, size = _views_and_size(pipelines, _place(tree, "framework.transforms"))
    outputs = [p.output_spec for p in pipelines.values()]
    backbone = vlm.cls.build(vlm.config, n_views, size, assets=assets)
    dims = backbone.dims
    encoder: GeometryEncoder | None = None
    fuse: Fusion | None = None
    if geometry is not None and fusion is not None:
        encoder = geometry.cls.build(geometry.config, n_views, size, weights=assets is None)
        fusion_dims = FusionDims(dims.hidden_size, encoder.dim, dims.n_layers, dims.grid)
        fuse = fusion.cls.build(fusion.config, fusion_dims)
        _check_needs(encoder, fuse, geometry, fusion, tree)
    action_head = head.cls.build(
        head.config,
        HeadDims(
            hidden_size=dims.hidden_size,
            n_layers=dims.n_layers,
            action_dim=max(s.action.dim for s in outputs),
            horizon=config.horizon,
            state_dim=max(s.observation.state_dim for s in outputs),
            n_embodiments=len(specs),
            context_dim=fuse.context_dim if fuse is not None else None,
            kv=dims.kv,
        ),
    )
    if isinstance(action_head, FittedHead):
        learned = head_assets if assets is None else assets / HEAD_ASSETS
        if learned is not None:
            action_head.load_assets(learned)
        else:
            action_head.fit(_chunks(pipelines, rows))
    _check_request(action_head, dims, (head, vlm), tree)
    if action_head.prompt.answer_ids is not None:
        backbone.add_answers(action_head.prompt.answer_ids)
    extra: Auxiliary | None = None
    if auxiliary is not None:
        layers = action_head.request("train").layers
        auxiliary_dims = AuxiliaryDims(
            hidden_size=dims.hidden_size,
            n_layers=dims.n_layers,
            top_layer=max(layers, default=dims.n_layers),
            grid=dims.grid,
            n_views=n_views,
            action_dim=max(s.action.dim for s in outputs),
            horizon=config.horizon,
            geometry_dim=None if encoder is None else encoder.dim,
        )
        extra = _build_auxiliary(auxiliary, auxiliary_dims, tree)
    resolved = replace(
        config,
        vlm=vlm.node,
        head=head.node,
        geometry=geometry.node if geometry else None,
        fusion=fusion.node if fusion else None,
        auxiliary=auxiliary.node if auxiliary else None,
        transforms=next(iter(pipelines.values())).nodes,
        use_geometric_branch=geometry is not None,
    )
    return VLAPolicy(
        backbone,
        action_head,
        encoder,
        fuse,
        auxiliary=extra,
        pipelines=pipelines,
        config=to_plain(resolved),
    )
