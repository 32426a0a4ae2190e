"""Normalisation of state and actions, per group, with exact inverses inside the clip range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.errors import ConfigError, suggest
from vla_core.history import present_name
from vla_core.ranges import NonNegative, check_ranges
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.stats import BY_STEP, VectorStats
from vla_core.transforms.base import Floats, Transform

Mode = Literal["q99", "min_max", "mean_std", "binary", "none"]


@dataclass(frozen=True)
class NormalizeConfig:
    """How to normalise.

    Args:
        state: mode of all state groups.
        action: mode of all action groups.
        groups: exceptions by group, e.g. ``{action.gripper: binary, state.joints: mean_std}``; a name that
            only one of state and action has can stand alone: ``{gripper: binary}``.
        clip: normalised state and actions are clipped to +-clip (0: never). Modes: ``q99`` maps
            [q01, q99] and ``min_max`` maps [min, max] to [-1, 1]; ``mean_std`` is (x - mean) / std;
            ``binary`` maps x above the middle of [min, max] to 1 and the rest to 0, and its inverse
            answers max or min; ``none`` leaves the group as it is, unclipped.
        by_step: action groups whose statistics are of each step of the chunk on its own, not of all steps
            together: relative actions spread with the time from now (GR00T N1.6 does so). Computed from the
            data.
    """

    state: Literal["q99", "min_max", "mean_std", "binary", "none"] = "q99"
    action: Literal["q99", "min_max", "mean_std", "binary", "none"] = "q99"
    groups: dict[str, str] = field(default_factory=dict)
    clip: NonNegative = 0.0
    by_step: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        modes = ("q99", "min_max", "mean_std", "binary", "none")
        for name, mode in self.groups.items():
            if mode not in modes:
                raise ConfigError(f"normalize: group '{name}' has mode '{mode}'{suggest(mode, modes)}")
        check_ranges(self, "normalize: ")


class _Affine:
    """(x - offset) / scale per dim, with binary dims and constant dims treated apart."""

    def __init__(
        self, groups: tuple[GroupSpec, ...], default: str, exceptions: dict[str, str],
        stats: VectorStats, clip: float, what: str,
    ) -> None:  # fmt: skip
        dim = sum(g.dim for g in groups)
        if stats.dim != dim:
            raise ConfigError(f"statistics of '{what}' have {stats.dim} dims, the spec has {dim}")
        # What a group is normalised by holds for its earlier moments, unless they are named themselves.
        found = [exceptions.get(g.name, exceptions.get(present_name(g.name), default)) for g in groups]
        modes = np.concatenate([[mode] * g.dim for mode, g in zip(found, groups, strict=True)])
        _check_sound(stats, modes, [g.name for g in groups for _ in range(g.dim)], what)
        low = np.where(modes == "q99", stats.q01, stats.min)
        high = np.where(modes == "q99", stats.q99, stats.max)
        # A percentile range can be empty where the full one is not (a gripper that rarely moves).
        empty = (modes == "q99") & (high - low < 1e-6)
        low, high = np.where(empty, stats.min, low), np.where(empty, stats.max, high)
        offset, scale = (low + high) / 2, (high - low) / 2
        is_std = modes == "mean_std"
        offset, scale = np.where(is_std, stats.mean, offset), np.where(is_std, stats.std, scale)
        self.keep = keep = modes == "none"
        self.offset = np.where(keep, 0.0, offset)
        # A constant dim carries nothing: it becomes 0 and comes back as the constant.
        self.constant = ~keep & (scale < 1e-6)
        self.scale = np.where(keep, 1.0, np.where(self.constant, 1.0, scale))
        self.binary = modes == "binary"
        self.low, self.high = stats.min, stats.max
        self.clip = clip

    def forward(self, x: Floats) -> Floats:
        y = (x.astype(np.float64) - self.offset) / self.scale
        if self.clip:
            y = np.where(self.keep, y, np.clip(y, -self.clip, self.clip))
        y = np.where(self.constant, 0.0, y)
        y = np.where(self.binary, (x > (self.low + self.high) / 2).astype(np.float64), y)
        return y.astype(np.float32)

    def inverse(self, y: Floats) -> Floats:
        x: NDArray[np.float64] = y.astype(np.float64) * self.scale + self.offset
        x = np.where(self.constant, self.offset, x)
        x = np.where(self.binary, np.where(y > 0.5, self.high, self.low), x)
        return x.astype(np.float32)


def _check_sound(stats: VectorStats, modes: NDArray[np.str_], names: Sequence[str], what: str) -> None:
    """That the numbers which are read are statistics: a range from high to low would make a dim constant."""
    pairs = {"q99": ("q01", "q99"), "min_max": ("min", "max"), "binary": ("min", "max")}
    for dim, (mode, name) in enumerate(zip(modes, names, strict=True)):
        used = pairs.get(str(mode), ("mean", "std") if mode == "mean_std" else ())
        values = {key: float(getattr(stats, key)[dim]) for key in used}
        said = " and ".join(f"{key} {value:g}" for key, value in values.items())
        low, high = (*values.values(), 0.0, 0.0)[:2]
        least = 0.0 if mode == "mean_std" else low - 1e-6 * max(1.0, abs(low))  # percentiles are rounded
        if not np.isfinite(list(values.values())).all() or high < least:
            raise ConfigError(
                f"statistics of '{what}' have {said} for dim {dim} (of '{name}'), which no data has; take "
                "those that were computed (norm_stats.json of a checkpoint as it was written)"
            )


class _BySteps:
    """The same for a chunk whose steps have statistics of their own, as one vector of all its numbers."""

    def __init__(self, affine: _Affine) -> None:
        self.affine, self.size = affine, len(affine.offset)

    def _flat(self, change: Callable[[Floats], Floats], x: Floats) -> Floats:
        if x.size > self.size:
            raise ValueError(f"a chunk of {x.shape} has more numbers than there are statistics: {self.size}")
        # A chunk may end early: an episode's end, or what is left of an earlier answer.
        flat = np.zeros(self.size, np.float32)
        flat[: x.size] = x.ravel()
        return change(flat)[: x.size].reshape(x.shape)

    def forward(self, x: Floats) -> Floats:
        return self._flat(self.affine.forward, x)

    def inverse(self, y: Floats) -> Floats:
        return self._flat(self.affine.inverse, y)


def _chosen(names: Sequence[str], groups: tuple[GroupSpec, ...]) -> NDArray[np.bool_]:
    """Which dims ``by_step`` names."""
    plain, known = [name.removeprefix("action.") for name in names], [g.name for g in groups]
    for name in plain:
        if name not in known:
            raise ConfigError(f"normalize: by_step: no action group '{name}'{suggest(name, known)}")
    return np.concatenate([np.full(g.dim, g.name in plain) for g in groups])


def _by_vector(groups: dict[str, str], spec: RobotSpec) -> dict[str, dict[str, str]]:
    """Vector -> its groups' modes."""
    names = {
        "state": [group.name for group in spec.observation.state],
        "action": [group.name for group in spec.action.groups],
    }
    known = [f"{vector}.{name}" for vector, inside in names.items() for name in inside]
    out: dict[str, dict[str, str]] = {"state": {}, "action": {}}
    for key, mode in groups.items():
        vector, dot, name = key.partition(".")
        if dot and vector in names and name in names[vector]:
            out[vector][name] = mode
            continue
        having = [vector for vector, inside in names.items() if key in inside]
        if len(having) > 1:
            raise ConfigError(
                f"normalize: state and action both have a group '{key}'; write 'state.{key}' or "
                f"'action.{key}'"
            )
        if not having:
            raise ConfigError(
                f"normalize: no group '{key}'{suggest(key, [*known, *names['state'], *names['action']])}"
            )
        out[having[0]][key] = mode
    return out


class Normalize(Transform):
    """Normalise state and actions with the statistics at this level of the pipeline."""

    Config = NormalizeConfig
    config: NormalizeConfig
    needs_statistics = True

    def __init__(self, config: NormalizeConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        exceptions = _by_vector(config.groups, spec)
        stats, clip = spec.statistics, config.clip
        actions = spec.action.groups
        of_steps = _chosen(config.by_step, actions)
        self._action: _Affine | _BySteps
        if of_steps.any():
            whole, each = stats["action"], stats[BY_STEP]
            steps = each.dim // whole.dim
            mixed = each.where(np.tile(of_steps, steps), whole.repeated(steps))
            self._action = _BySteps(
                _Affine(actions * steps, config.action, exceptions["action"], mixed, clip, BY_STEP)
            )
        else:
            self._action = _Affine(
                actions, config.action, exceptions["action"], stats["action"], clip, "action"
            )
        self._state: _Affine | None = None
        groups = spec.observation.state
        if groups:
            self._state = _Affine(groups, config.state, exceptions["state"], stats["state"], clip, "state")

    @classmethod
    def wants_steps(cls, config: NormalizeConfig) -> bool:
        return bool(config.by_step)

    def state(self, state: Floats) -> Floats:
        assert self._state is not None
        return self._state.forward(state)

    def actions(self, actions: Floats, state: Floats | None) -> Floats:
        return self._action.forward(actions)

    def inverse(self, actions: Floats, state: Floats | None) -> Floats:
        return self._action.inverse(actions)
