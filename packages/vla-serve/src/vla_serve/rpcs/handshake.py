"""A client's specs against a policy's contract: the first difference as an error, or a list of all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from vla_core.errors import SpecMismatch, UserError, suggest
from vla_core.specs import ActionSpec, ObservationSpec, RobotSpec, check_action, check_observation

from vla_serve.camera_inputs import decode_sent, lacking
from vla_serve.engine.errors import FieldError
from vla_serve.engine.kept_chunks import check_carries_over
from vla_serve.engine.policy import camera_inputs, longest_delay
from vla_serve.engine.shelf import Served
from vla_serve.messages.spec_codec import decode_action_spec, decode_observation_spec, encode_spec
from vla_serve.messages.status import mismatch
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1 import specs_pb2


def spec_of(served: Served, embodiment: str, prefix: str = "") -> RobotSpec:
    """The contract of an embodiment; empty: the policy's only one."""
    specs = served.specs
    if not embodiment:
        if len(specs) == 1:
            return next(iter(specs.values()))
        raise FieldError(f"{prefix}embodiment", f"name one of {', '.join(sorted(specs))}")
    if embodiment not in specs:
        description = f"the policy has no '{embodiment[:64]}'{suggest(embodiment[:64], specs)}"
        raise FieldError(f"{prefix}embodiment", description)
    return specs[embodiment]


def contract_of(served: Served, spec: RobotSpec) -> specs_pb2.RobotSpec:
    """What is published of one of its embodiments."""
    return encode_spec(spec, camera_inputs(served.engine.policy))


def check_config(config: pb.SessionConfig, served: Served, spec: RobotSpec) -> None:
    """Raise for the first difference."""
    observation, action = _decoded(config)
    who = ("the policy", "the client")
    try:
        if observation is not None:
            check_observation(spec.observation, observation, who)
        if action is not None:
            check_action(spec.action, action, who, horizon=False)
    except SpecMismatch as error:
        raise mismatch(str(error)) from None
    missing = _missing_inputs(config, camera_inputs(served.engine.policy), spec)
    if missing:
        raise mismatch(f"camera_inputs: {missing}")


def _missing_inputs(config: pb.SessionConfig, needed: Collection[str], spec: RobotSpec) -> str:
    if not config.HasField("camera_inputs"):
        return ""
    return lacking(needed, spec.observation, decode_sent(config.camera_inputs, "config.camera_inputs"))


def delay_of(served: Served, spec: RobotSpec) -> int:
    """Longest delay that the policy bridges; :class:`UserError` when it cannot continue a chunk."""
    check_carries_over(spec)
    return longest_delay(served.engine.policy, spec.embodiment)


def differences(config: pb.SessionConfig, served: Served, spec: RobotSpec) -> list[pb.Mismatch]:
    """All that stands between a config and a session."""
    observation, action = _decoded(config)
    found: list[pb.Mismatch] = []
    if observation is not None:
        _named("observation.cameras", spec.observation.cameras, observation.cameras, found)
        _named("observation.state", spec.observation.state, observation.state, found)
    if action is not None:
        _named("action.groups", spec.action.groups, action.groups, found)
        _value("action.control_hz", spec.action.control_hz, action.control_hz, found)
    needed = camera_inputs(served.engine.policy)
    missing = _missing_inputs(config, needed, spec)
    if missing:
        sent = decode_sent(config.camera_inputs, "config.camera_inputs")
        said = "; ".join(f"{camera}: {', '.join(sorted(names))}" for camera, names in sent.items() if names)
        found.append(
            pb.Mismatch(
                field="camera_inputs",
                policy=f"needs {', '.join(sorted(needed))} of at least one camera",
                client=f"sends {said or 'pictures alone'}",
                description=f"camera_inputs: {missing}",
            )
        )
    if config.real_time_chunking:
        try:
            delay_of(served, spec)
        except UserError as error:
            found.append(
                pb.Mismatch(
                    field="real_time_chunking",
                    policy="cannot continue a chunk",
                    client="wants to",
                    description=f"real_time_chunking: {error}",
                )
            )
    return found


def _decoded(config: pb.SessionConfig) -> tuple[ObservationSpec | None, ActionSpec | None]:
    observation = action = None
    if config.HasField("observation_spec"):
        observation = decode_observation_spec(config.observation_spec, "config.observation_spec")
    if config.HasField("action_spec"):
        action = decode_action_spec(config.action_spec, "config.action_spec")
    return observation, action


def _named(path: str, expected: tuple[Any, ...], got: tuple[Any, ...], found: list[pb.Mismatch]) -> None:
    """Entries by name: those that one side lacks, the order of the others, and what is in them."""
    ours = {entry.name: entry for entry in expected}
    theirs = {entry.name: entry for entry in got}
    for name, entry in ours.items():
        if name not in theirs:
            _value(f"{path}[{name}]", entry, None, found)
    for name, entry in theirs.items():
        if name not in ours:
            _value(f"{path}[{name}]", None, entry, found)
    both = [name for name in ours if name in theirs]
    order = [name for name in theirs if name in ours]
    if both != order:
        _value(f"{path} (order)", ", ".join(both), ", ".join(order), found)
    for name in both:
        for part in fields(ours[name]):
            _value(
                f"{path}[{name}].{part.name}",
                getattr(ours[name], part.name),
                getattr(theirs[name], part.name),
                found,
            )


def _value(path: str, expected: Any, got: Any, found: list[pb.Mismatch]) -> None:
    if expected == got:
        return
    ours, theirs = _said(expected), _said(got)
    description = f"{path}: the policy has {ours or 'none'}, the client has {theirs or 'none'}"
    found.append(pb.Mismatch(field=path, policy=ours, client=theirs, description=description))


def _said(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "__dataclass_fields__"):
        return ", ".join(f"{part.name}={getattr(value, part.name)}" for part in fields(value))
    return str(value)
