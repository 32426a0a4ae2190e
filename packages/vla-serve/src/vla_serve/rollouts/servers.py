"""Which server answered which episode: a rollout that goes on may meet another machine or other code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vla_serve.rollouts.worker import Done


def written(done: Sequence[Done], policy: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``policy`` and the episodes as results.json has them.

    Where the server of now is not that of all episodes, ``policy`` gets ``servers``: each that differs, with
    the number of its ``episodes``, whose ``server`` is a place in that list.
    """
    now = policy.get("server") or {}
    servers: list[Mapping[str, Any]] = []
    for server in (*(d.server for d in done), now):
        if server not in servers:
            servers.append(server)
    if len(servers) == 1:
        return dict(policy), [_as_json(d) for d in done]
    places = [servers.index(d.server) for d in done]
    told = [{"episodes": places.count(i), **server} for i, server in enumerate(servers)]
    episodes = [{**_as_json(d), "server": place} for d, place in zip(done, places, strict=True)]
    return {**policy, "servers": told}, episodes


def read(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The server of each episode of results.json, of which all have the same where it says nothing."""
    policy = results["policy"]
    servers = [{k: v for k, v in s.items() if k != "episodes"} for s in policy.get("servers", ())]
    for node in results["episodes"]:
        yield servers[node["server"]] if servers else policy.get("server") or {}


def _as_json(done: Done) -> dict[str, Any]:
    latencies = [round(ms, 3) for ms in done.latencies_ms]
    return {**asdict(done.episode), "achieved": list(done.episode.achieved), "latencies_ms": latencies}
