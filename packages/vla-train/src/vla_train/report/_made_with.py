"""What a run or a rollout was made with: code, machine, weights, data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vla_core.checkpoint import weights_file
from vla_core.errors import UserError
from vla_core.files import sha256_of

from vla_train.report._page import Markup, code, facts, join
from vla_train.report._rollout import Rollout
from vla_train.report._run import Run
from vla_train.report._text import NONE

_SHORT = 12  # hex digits of a digest; the whole is in run.json and results.json


def _digest(value: Any) -> str:
    return str(value)[:_SHORT] if value else NONE


def _machine(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpus = node.get("gpus")
    kinds = dict.fromkeys(gpus) if isinstance(gpus, list) else {}
    named = [f"{gpus.count(kind)} x {kind}" for kind in kinds] if isinstance(gpus, list) else []
    return [
        ("git commit", code(str(node["git_commit"])) if node.get("git_commit") else NONE),
        ("CPU", str(node.get("cpu") or NONE)),
        ("GPU", ", ".join(named) or ("none" if isinstance(gpus, list) else NONE)),
        ("Python", str(node.get("python") or NONE)),
    ]


def _checkpoint(node: Any) -> str:
    if not isinstance(node, Mapping) or not node.get("path"):
        return NONE
    return join([code(str(node["path"])), ", SHA-256 ", code(_digest(node.get("weights_digest")))])


def of_run(run: Run) -> Markup:
    """A line each: checkpoint, data, code, machine."""
    pairs = [("checkpoint", _checkpoint(run.info.get("checkpoint")))]
    if run.info.get("started_from"):
        pairs.append(("started from", _checkpoint(run.info["started_from"])))
    digest = run.part("data").get("digest")
    pairs.append(("data set", join(["SHA-256 of its numbers ", code(_digest(digest))]) if digest else NONE))
    return facts([*pairs, *_machine(run.info)])


def _weights(checkpoint: Path) -> str | None:
    """Their SHA-256; None where none are there.

    Raises:
        UserError: they cannot be read.
    """
    try:
        file = weights_file(checkpoint)
    except UserError:
        return None
    try:
        now = file.stat()
        return _hashed(file, now.st_size, now.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=64)
def _hashed(file: Path, size: int, changed: int) -> str:
    """SHA-256 of gigabytes, once for all places of a page; ``size`` and ``changed`` tell another content."""
    return sha256_of(file)


def other_weights(rollout: Rollout, run: Run) -> str | None:
    """Who acted, where that was not the policy of this run; None where it was, or where nobody says."""
    settings, policy = rollout.settings, rollout.policy
    if settings.get("replay"):
        return f"the recorded actions of {settings['replay']}"
    if settings.get("policy") == "expert" and not settings.get("address"):
        return "the simulator's scripted expert"
    weights, path = str(policy.get("weights_digest") or ""), str(policy.get("checkpoint") or "")
    if not weights or weights == run.part("checkpoint").get("weights_digest"):
        return None
    # An earlier checkpoint, or one of a run that was killed: wherever it was served, its name is the same.
    if path and weights == _weights(run.path / "checkpoints" / Path(path).name):
        return None
    return f"other weights ({path or 'of unknown place'}, SHA-256 {weights[:_SHORT]})"


def _servers(policy: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each server that answered, by what to call it; several where a rollout went on with another."""
    several = policy.get("servers")
    if isinstance(several, list):
        named = [s for s in several if isinstance(s, Mapping) and s.get("episodes")]
        if len(named) > 1:
            return [(f"server {i} of {len(named)}, {_episodes(s)}", s) for i, s in enumerate(named, 1)]
        if named:
            return [("server", named[0])]
    server = policy.get("server")
    return [("server", server)] if isinstance(server, Mapping) and server else []


def _episodes(server: Mapping[str, Any]) -> str:
    n = server["episodes"]
    return f"{n} episode{'' if n == 1 else 's'}"


def of_rollout(rollout: Rollout, run: Run) -> Markup:
    """The same of a rollout, and whether this run's weights answered."""
    policy = rollout.policy
    weights = str(policy.get("weights_digest") or "")
    shown: list[tuple[str, str]] = []
    if weights:
        told = _checkpoint({"path": policy.get("checkpoint"), "weights_digest": weights})
        shown.append(("checkpoint", code(weights[:_SHORT]) if told == NONE else told))
        shown.append(("data set", _digest(policy.get("data_digest"))))
        ours = run.part("checkpoint")
        if ours.get("weights_digest"):
            same = ours["weights_digest"] == weights
            text = f"those of {ours.get('path')}" if same else f"not those of this run's {ours.get('path')}"
            if not same and other_weights(rollout, run) is None:
                text += ", but of an earlier checkpoint of it"
            shown.append(("weights", text))
    for who, server in _servers(policy):
        shown += [(f"{who}: {name}", value) for name, value in _machine(server)]
    return facts([*shown, *_machine(rollout.provenance)])
