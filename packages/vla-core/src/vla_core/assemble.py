"""A policy in one call: resolve, learn from the data, build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vla_core.build import ModelDims, build_model, build_pipelines, check_robots, resolved_config
from vla_core.config import Tree
from vla_core.fitting import FitCache, fit
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.resolve import resolve
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.transforms.pipeline import Rows


def build_policy(
    config: FrameworkConfig,
    specs: Mapping[str, RobotSpec],
    *,
    statistics: Mapping[str, NormStats] | None = None,
    rows: Mapping[str, Rows] | None = None,
    head_assets: Path | None = None,
    tree: Tree | None = None,
    device: str | torch.device | None = None,
    cache: FitCache | None = None,
) -> VLAPolicy:
    """Resolve what ``config`` names, learn from the rows what must be learned, build the policy.

    Args:
        config: the framework section.
        specs: embodiment -> raw robot spec (its horizon must be ``config.horizon``).
        statistics: embodiment -> statistics at the normalisation step, known from elsewhere.
        rows: embodiment -> low-dimensional rows to compute those statistics from.
        head_assets: what a head learned in another run, instead of having it learn from ``rows``.
        tree: where the config comes from, for errors with file and line.
        device: where the parameters are made; None: torch's default device.
        cache: where what is learned from the rows is kept.

    Raises:
        ConfigError: naming the key and the fix.
    """
    resolved = resolve(config, tree)
    check_robots(resolved, specs)
    fitted = fit(resolved, specs, rows, statistics=statistics, head_assets=head_assets, cache=cache)
    pipelines = build_pipelines(resolved, specs, fitted.statistics)
    model = build_model(
        resolved, ModelDims.of(pipelines, resolved), device=device, head_assets=fitted.head_assets
    )
    return VLAPolicy(model, pipelines, resolved_config(resolved, pipelines))
