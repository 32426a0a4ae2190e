"""From a policy's actions to commands that a robot may have: within bounds, and in small steps.

Shapes: A action dims, S state dims, D dims of a group. Numbers are in the contract's units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError, SpecMismatch, UserError, suggest
from vla_core.specs import ActionSpec, GroupSpec
from vla_core.types import Float

from vla_serve.robot.repack import RobotRepackConfig
from vla_serve.robot.steps import Array, limited, still
from vla_serve.robot.wiring import Wire, Wiring
from vla_serve.rollouts.hold import holding

Bounds = tuple[Array, Array]


@dataclass(frozen=True)
class _Part:
    """How one group is commanded.

    Args:
        group: of the contract.
        dims: its place in an action.
        adds: to what its numbers are added: ``last`` (the command before), ``origin`` (the state at the
            chunk's start), or nothing.
        sends: whether the robot gets targets or changes.
        state: where the state has the same numbers, and what they are multiplied by; None: nowhere.
        bounds: of the policy's numbers.
        limits: of what is sent.
        largest: step between two commands.
    """

    group: GroupSpec
    dims: slice
    adds: str
    sends: str
    state: tuple[slice, float] | None
    bounds: Bounds | None
    limits: Bounds | None
    largest: float | None


class Commander:
    """Keeps what was sent last, and makes the next command of it and of the policy's action.

    Bounds are those of the demonstrations, or the repack file's ``limits``. They do not apply to rotations,
    whose numbers mean little alone.

    Args:
        wiring: contract and robot.
        repack: ``commands`` and ``limits`` are read.
        bounds: of the demonstrated actions ``[A]``; None: not known.
        max_step: largest step of a control step by group, in its unit (radians for rotations).

    Raises:
        UserError: a step limit or an offset for a group that the robot does not observe, an unknown group.
    """

    def __init__(
        self,
        wiring: Wiring,
        repack: RobotRepackConfig,
        bounds: Bounds | None,
        max_step: Mapping[str, float] | None = None,
    ) -> None:
        self._wiring, self._steps = wiring, dict(max_step or {})
        groups = [wire.group.name for wire in wiring.action]
        for name, step in self._steps.items():
            if name not in groups:
                raise UserError(f"max_step: no action group '{name}'{suggest(name, groups)}")
            if not 0 < step < np.inf:
                raise UserError(f"max_step: {name}: must be positive, got {step}")
        self._parts = [self._part(wire, repack, bounds) for wire in wiring.action]
        action = wiring.spec.action
        sent = [replace(p.group, representation="absolute") if p.adds else p.group for p in self._parts]
        self.sent_spec = ActionSpec(tuple(sent), 1, action.control_hz)
        told = [s if p.adds == "origin" else p.group for s, p in zip(sent, self._parts, strict=True)]
        self.recorded_spec = ActionSpec(tuple(told), 1, action.control_hz)
        """Of what :meth:`sent` returns: the contract's, but targets where it has offsets from a state."""
        self.bounded: Counter[str] = Counter()
        """Group -> commands that bounds changed."""
        self.slowed: Counter[str] = Counter()
        """Group -> commands that the largest step changed."""
        self._reference_A = np.full(action.dim, np.nan)
        self._any = False

    def _part(self, wire: Wire, repack: RobotRepackConfig, bounds: Bounds | None) -> _Part:
        group, dims = wire.group, self._wiring.spec.action.slices()[wire.group.name]
        state = self._state_of(wire)
        rate = group.unit.endswith("/s")
        sends = repack.commands.get(group.name)
        if sends is None:
            sends = "delta" if group.representation == "delta" and (rate or state is None) else "absolute"
        if (group.representation != "delta" or rate) and sends != ("delta" if rate else "absolute"):
            raise ConfigError(
                f"repack.commands.{group.name}: '{sends}', but the contract's numbers are "
                f"{group.representation} in {group.unit}"
            )
        adds = ""
        if group.representation == "relative":
            adds, state = "origin", self._offset_from(group)
        elif group.representation == "delta" and sends == "absolute":
            adds = "last"
        if adds and (state is None or group.rotation != "none"):
            why = "is a rotation" if group.rotation != "none" else "is not among what the robot observes"
            raise SpecMismatch(
                f"action group '{group.name}': {group.representation} to a position that {why}"
            )
        largest = self._steps.get(group.name)
        if largest is not None and sends == "absolute" and state is None:
            raise UserError(
                f"max_step: the robot does not observe '{group.name}', so how far its first step goes is not "
                "known; leave the group out (--max_step GROUP=STEP,...)"
            )
        if group.rotation != "none":
            if group.name in repack.limits:
                raise ConfigError(f"repack.limits.{group.name}: a rotation; use max_step")
            return _Part(group, dims, adds, sends, state, None, None, largest)
        known = None if bounds is None else (bounds[0][dims], bounds[1][dims])
        said = repack.limits.get(group.name)
        if said is None:
            return _Part(group, dims, adds, sends, state, known, None if adds else known, largest)
        if not len(said.low) == len(said.high) == group.dim or np.greater(said.low, said.high).any():
            raise ConfigError(
                f"repack.limits.{group.name}: {group.dim} dims take as many numbers each, low <= high"
            )
        limits = np.array(said.low), np.array(said.high)
        return _Part(group, dims, adds, sends, state, known if adds else None, limits, largest)

    def lines(self) -> Iterator[str]:
        """What is sent for each group, and how far it may go."""
        for part in self._parts:
            what = {"last": ", summed up from where it is", "origin": ", from the state at the chunk's start"}
            sends = ("targets" if part.sends == "absolute" else "changes") + what.get(part.adds, "")
            named = [(part.bounds, "policy's numbers"), (part.limits, "commands")]
            if part.bounds is part.limits:
                named = named[1:]
            kept = [f"{name} kept in {_text(b[0])} to {_text(b[1])}" for b, name in named if b is not None]
            kept += ["no bounds"] * (not kept)
            unit = "rad" if part.group.rotation != "none" else part.group.unit
            step = (
                "steps not limited" if part.largest is None else f"steps of at most {part.largest:g} {unit}"
            )
            yield f"  {part.group.name}: sends {sends} in {part.group.unit}; {', '.join(kept)}; {step}"

    def _state_of(self, wire: Wire) -> tuple[slice, float] | None:
        """Where the state has what the robot calls by the same names."""
        slices = self._wiring.spec.observation.state_slices()
        for other in self._wiring.state:
            if other.keys == wire.keys and other.group.rotation == wire.group.rotation:
                return slices[other.group.name], other.factor / wire.factor
        return None

    def _offset_from(self, group: GroupSpec) -> tuple[slice, float] | None:
        slices = self._wiring.spec.observation.state_slices()
        for other in self._wiring.spec.observation.state:
            if (other.name, other.dim, other.unit) == (group.name, group.dim, group.unit):
                return slices[group.name], 1.0
        return None

    def start(self, state_S: Float | None) -> None:
        """A new episode: the first step counts from where the robot is.

        Raises:
            UserError: it is further outside of the limits than one step leads back.
        """
        self._any = False
        for part in self._parts:
            reference_D = still(part.group) if part.sends == "delta" else np.full(part.group.dim, np.nan)
            if part.sends == "absolute" and part.state is not None and state_S is not None:
                reference_D = self._now(part, state_S)
                if part.limits is not None:
                    low, high = part.limits
                    inside_D = np.clip(reference_D, low, high)
                    off = float(np.abs(inside_D - reference_D).max())
                    if part.largest is not None and off > part.largest:
                        raise UserError(
                            f"{part.group.name}: the robot stands at {_text(reference_D)} {part.group.unit}, "
                            f"outside of {_text(low)} to {_text(high)}; move it inside, or state other "
                            "limits in the repack file"
                        )
                    reference_D = inside_D
            self._reference_A[part.dims] = reference_D

    def _now(self, part: _Part, state_S: Float) -> Array:
        assert part.state is not None
        where, factor = part.state
        return np.asarray(state_S[where], np.float64) * factor

    def command(self, action_A: Float, origin_S: Float | None) -> Array:
        """What to send ``[A]``, of the groups of ``sent_spec``.

        Args:
            action_A: of the policy, finite.
            origin_S: the state at the start of the chunk it is from.

        Raises:
            UserError: numbers that are not finite.
        """
        if not np.isfinite(action_A).all():
            raise UserError("action: not finite; nothing is sent")
        out_A = np.asarray(action_A, np.float64).copy()
        for part in self._parts:
            name, wanted_D = part.group.name, out_A[part.dims]
            reference_D = self._reference_A[part.dims]
            allowed_D = _clip(wanted_D, part.bounds)
            if part.adds == "origin":
                assert origin_S is not None
                allowed_D, wanted_D = (x + self._now(part, origin_S) for x in (allowed_D, wanted_D))
            elif part.adds == "last":
                allowed_D, wanted_D = allowed_D + reference_D, wanted_D + reference_D
            allowed_D = _clip(allowed_D, part.limits)
            self.bounded[name] += bool((allowed_D != wanted_D).any())
            if part.largest is not None:
                near_D = limited(part.group, reference_D, allowed_D, part.largest)
                self.slowed[name] += bool((near_D != allowed_D).any())
                allowed_D = near_D
            out_A[part.dims] = allowed_D
        return out_A

    def sent(self, sent_A: NDArray[np.floating]) -> Float:
        """Remember what was sent; returns it as an action ``[A]`` of ``recorded_spec``."""
        out_A = np.asarray(sent_A, np.float64).copy()
        for part in self._parts:
            if part.adds == "last":
                out_A[part.dims] -= self._reference_A[part.dims]
            if part.sends == "absolute":
                self._reference_A[part.dims] = sent_A[part.dims]
        self._last_A, self._any = np.asarray(sent_A, np.float64), True
        return out_A.astype(np.float32)

    def hold(self) -> Array | None:
        """What to send to stay ``[A]``; None while nothing was sent, for then it stands by itself."""
        return np.asarray(holding(self.sent_spec, self._last_A), np.float64) if self._any else None


def _clip(values: Array, bounds: Bounds | None) -> Array:
    return values if bounds is None else np.clip(values, *bounds)


def _text(values: Array) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
