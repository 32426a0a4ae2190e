"""The protocols that a bridge speaks, each checked against the contract of the server before it listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import RobotSpec

from vla_serve.bridges.listener import Asker, Listener, Speaker
from vla_serve.bridges.openpi import Openpi
from vla_serve.bridges.repack import RepackConfig, read
from vla_serve.bridges.starvla import Starvla
from vla_serve.bridges.vla_eval import VlaEval
from vla_serve.camera_inputs import lacking
from vla_serve.clients.async_client import AsyncPolicyClient

__all__ = ["Listener", "read", "speakers"]

Connect = Callable[..., AsyncPolicyClient]


async def speakers(
    connect: Connect,
    names: Sequence[str],
    repack: RepackConfig,
    policy: str,
    embodiment: str,
    timeout_s: float,
    denoise_steps: int | None,
) -> dict[str, Speaker]:
    """The protocols ``names``.

    Args:
        connect: makes a client of the server, given an ``embodiment``.
        names: of ``openpi``, ``starvla``, ``vla_eval``.
        repack: whose keys are what.
        policy: that ``connect`` asks for; empty: the server's only one.
        embodiment: of the policy; empty: its only one, for StarVLA all.
        timeout_s: a busy server is asked again for so long.
        denoise_steps: of each request.

    Raises:
        UserError: no section for a protocol, or one that does not fit the contract; a policy that cannot do
            without depth or the calibration of its cameras.
    """
    specs = await _specs(connect, policy, embodiment)
    # The contract that was checked is the one that each connection's session must still have.
    asker = Asker(partial(_client, connect, specs), timeout_s, denoise_steps)
    found: dict[str, Speaker] = {}
    for name in names:
        if name == "starvla":
            found[name] = Starvla(asker, repack.starvla, specs)
            continue
        if len(specs) > 1:
            raise UserError(f"--embodiment: name one of {', '.join(specs)}")
        (spec,) = specs.values()
        if name == "openpi":
            if repack.openpi is None:
                raise ConfigError(_lacks("openpi", spec))
            found[name] = Openpi(asker, repack.openpi, spec)
        else:
            if repack.vla_eval is None:
                raise ConfigError(_lacks("vla_eval", spec))
            found[name] = VlaEval(asker, repack.vla_eval, spec)
    return found


async def _specs(connect: Connect, policy: str, embodiment: str) -> dict[str, RobotSpec]:
    names = [embodiment]
    if not embodiment:
        client = connect()
        served = {info.name: info for info in (await client.server_info()).policies}
        await client.close()
        if not policy and len(served) > 1:
            raise UserError(f"--policy: name one of {', '.join(served)}")
        if policy and policy not in served:
            raise UserError(f"--policy: '{policy}' is not served{suggest(policy, served)}")
        names = list(served[policy or next(iter(served))].embodiments)
    specs = {}
    for name in names:
        async with connect(embodiment=name) as client:
            specs[name] = client.contract
            if client.camera_inputs:
                raise UserError(
                    f"embodiment '{client.contract.embodiment}': "
                    + lacking(client.camera_inputs, client.contract.observation, {})
                    + "; clients of openpi, StarVLA and vla-eval send pictures and numbers alone"
                )
    return specs


def _client(connect: Connect, specs: dict[str, RobotSpec], embodiment: str) -> AsyncPolicyClient:
    spec = specs[embodiment]
    return connect(embodiment=embodiment, observation_spec=spec.observation, action_spec=spec.action)


def _lacks(name: str, spec: RobotSpec) -> str:
    cameras = ", ".join(f"{camera.name}: their key" for camera in spec.observation.cameras)
    return f"repack: the file has no section '{name}', which says whose keys are what; images: {{{cameras}}}"
