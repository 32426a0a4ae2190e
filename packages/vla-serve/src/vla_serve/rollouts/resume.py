"""Going on with a rollout: the episodes of an earlier call that need not run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

from vla_serve.rollouts import servers
from vla_serve.rollouts.worker import Done, EpisodeResult

FILE = "results.json"
# What may differ between two calls: how many episodes of what, and how they are run and watched.
_FREE = frozenset(
    (
        "address",
        "tasks",
        "episodes",
        "seed",
        "workers",
        "videos",
        "max_failures_videos",
        "policy",
        "timeout_s",
    )
) | {"restart_s", "executed_steps", "vla_serve"}


def read_results(path: Path) -> dict[str, Any]:
    """``results.json``, named itself or by its directory.

    Raises:
        UserError: not there, or not such a file.
    """
    file = path / FILE if path.is_dir() else path
    try:
        results: dict[str, Any] = json.loads(file.read_text("utf-8"))
        for key in ("settings", "policy", "tasks", "episodes"):
            results[key]
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; it is written by vla-rollout") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not results of vla-rollout ({error!r})") from error
    return results


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


@dataclass
class Kept:
    """What an earlier call left: episodes that ended, its seconds, and what it executed of a chunk."""

    done: list[Done] = field(default_factory=list)
    wall_s: float = 0.0
    executed_steps: int | None = None


def kept(
    out: Path, settings: Mapping[str, Any], policy: Mapping[str, Any], seeds: Mapping[str, Sequence[int]]
) -> Kept:
    """Episodes in ``out`` that ended and are asked for again (``seeds`` of each task), and their seconds.

    Raises:
        UserError: results of other weights or of other settings.
    """
    if not (out / FILE).exists():
        return Kept()
    before = read_results(out)
    if all(node["success"] is None for node in before["episodes"]):
        return Kept()
    keys = (before["settings"].keys() | settings.keys()) - _FREE
    differing = {
        key: (before["settings"].get(key), settings.get(key))
        for key in sorted(keys)
        if plain(before["settings"].get(key)) != plain(settings.get(key))
    }
    old, new = ((node.get("weights_digest") or "") for node in (before["policy"], policy))
    if old != new:
        differing["weights"] = (old[:12], new[:12])
    if differing:
        shown = ", ".join(f"{key} {was!r}, now {now!r}" for key, (was, now) in differing.items())
        raise UserError(
            f"--out: {out} holds results of something else ({shown}); "
            "choose another directory, or replace them with --overwrite"
        )
    by = servers.read(before)
    done = [_done(node, server) for node, server in zip(before["episodes"], by, strict=True)]
    found = [d for d in done if d.episode.error is None and d.episode.seed in seeds.get(d.episode.task, ())]
    return Kept(found, float(before.get("wall_s", 0.0)), before["settings"].get("executed_steps"))


def _done(node: Mapping[str, Any], server: Mapping[str, Any]) -> Done:
    known = {key: node[key] for key in EpisodeResult.__dataclass_fields__ if key in node}
    known["achieved"] = tuple(node.get("achieved", ()))
    return Done(EpisodeResult(**known), tuple(node.get("latencies_ms", ())), server)
