"""A contract in words, one line for each thing that a client must get right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from vla_core.specs import GroupSpec, RobotSpec

from vla_serve.v1 import policy_pb2 as pb


def contract_lines(
    spec: RobotSpec, max_delay_steps: int | None, camera_inputs: Collection[str] = ()
) -> Iterator[str]:
    """Cameras in order, groups with dims, units and meaning, chunk, and what can be continued."""
    yield f"contract of embodiment '{spec.embodiment}'"
    for camera in spec.observation.cameras:
        yield f"  camera  {camera.name}: {camera.height} x {camera.width} uint8 RGB"
    if camera_inputs:
        yield f"  camera  with {', '.join(sorted(camera_inputs))} of at least one"
    yield from _groups("state ", spec.observation.state) if spec.observation.state else ("  state   none",)
    yield from _groups("action", spec.action.groups)
    action = spec.action
    yield (
        f"  chunk   {action.horizon} steps of {action.dim} dims at {action.control_hz:g} Hz: "
        f"{action.horizon / action.control_hz:.3g} s"
    )
    yield (
        "  continues a chunk (real-time chunking): "
        + ("no" if max_delay_steps is None else f"over a delay of up to {max_delay_steps} steps")
    )  # fmt: skip


def _groups(kind: str, groups: Sequence[GroupSpec]) -> Iterator[str]:
    start = 0
    for group in groups:
        where = f"{start}" if group.dim == 1 else f"{start}-{start + group.dim - 1}"
        words = [f"{group.unit}", group.representation]
        words += [group.rotation] if group.rotation != "none" else []
        words += [group.gripper] if group.gripper != "none" else []
        yield f"  {kind}  {group.name}: dims {where}, {', '.join(words)}"
        start += group.dim


def server_lines(info: pb.GetServerInfoResponse) -> Iterator[str]:
    """What a server serves and allows."""
    for policy in info.policies:
        yield (
            f"vla-serve {info.server_version}: policy '{policy.name}' ({policy.framework}), "
            f"embodiments {', '.join(policy.embodiments)}"
        )
        revision = policy.revision
        if revision.revision:
            yield (
                f"  revision {revision.revision}, weights {revision.weights_digest[:12] or 'of no file'}, "
                f"statistics {revision.statistics_digest[:12] or 'of no data'}"
            )
    limits = info.limits
    yield (
        f"limits: {info.max_message_bytes / 2**20:.3g} MiB a request, {info.max_queue} wait, "
        f"{limits.max_batch} a batch, {info.max_sessions} sessions, idle ones for "
        f"{info.session_idle_timeout_s:g} s, {limits.max_in_flight} requests of a connection, "
        f"{limits.max_in_flight_pixels / 1e6:.3g} megapixels at a time, "
        f"{limits.max_denoise_steps} denoise steps"
    )
