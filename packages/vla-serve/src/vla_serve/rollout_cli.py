"""``vla-rollout``: success rates of a served policy in a simulator."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_core import registry
from vla_core.dotted import dotted
from vla_core.envs.recorded import read
from vla_core.errors import UserError, suggest

from vla_serve import compare_cli
from vla_serve.access_args import SHOWN, shown
from vla_serve.clients.errors import PolicyServerError
from vla_serve.rollouts import replay
from vla_serve.rollouts.options import make_parser
from vla_serve.rollouts.pool import SimulatorDied
from vla_serve.rollouts.results import text
from vla_serve.rollouts.rollout import RolloutSettings, rollout
from vla_serve.rollouts.worker import Done

LISTED = 150
"""So many tasks are named where none was: all of most simulators."""


def _progress(done: Done, count: int, total: int) -> None:
    episode = done.episode
    outcome = "success" if episode.success else "failure"
    if episode.error is not None:
        outcome = f"ERROR {episode.error}"
    print(f"[{count}/{total}] {episode.task} seed {episode.seed}: {outcome}", flush=True)


def _tasks_of(env: str) -> str:
    known = registry.load("vla.envs", env).tasks()
    shown = [*known[:LISTED], f"... ({len(known):,} in all)"] if len(known) > LISTED else known
    return f" of {env}: {', '.join(shown)}" if shown else ""


def _what(given: Mapping[str, Any], tasks: tuple[str, ...]) -> tuple[str, tuple[str, ...], int]:
    """Simulator, tasks and episodes per task: as said, or as the replayed data set has them."""
    env, episodes = given["env"], given["episodes"]
    if given["replay"]:
        recorded, seeds = replay.chosen(given["replay"], tasks, None)
        longest = max(map(len, seeds.values()))
        return env or recorded.env, tuple(seeds), longest if episodes is None else episodes
    if not env:
        raise UserError(f"--env: say which: {', '.join(registry.names('vla.envs'))} (see vla-rollout --help)")
    if not tasks:
        raise UserError(f"--task: say which{_tasks_of(env)} (see vla-rollout --help)")
    return env, tasks, 20 if episodes is None else episodes


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] == "compare":
        return compare_cli.run(argv[1:])
    if argv and not argv[0].startswith("-"):
        raise UserError(f"no command '{argv[0]}'{suggest(argv[0], ['compare'])}; see vla-rollout --help")
    args, rest = make_parser().parse_known_args(argv)
    given = vars(args)
    out, tasks, overwrite = given.pop("out"), tuple(given.pop("tasks")), given.pop("overwrite")
    access = shown({name: given.pop(name) for name in SHOWN})
    given["env"], tasks, given["episodes"] = _what(given, tasks)
    settings = RolloutSettings(**given, tasks=tasks, env_options=dotted(rest, "env", "vla-rollout"))
    results = rollout(settings, out, on_episode=_progress, overwrite=overwrite, **access)
    print(f"\n{text(results)}\n")
    print(f"{out / 'results.json'}\n{out / 'report.html'}")
    if settings.replay:
        print(replay.summary(results["episodes"], read(Path(settings.replay))))
    failed = [e for e in results["episodes"] if e["error"] is not None]
    for episode in failed:
        print(f"vla-rollout: {episode['task']} seed {episode['seed']}: {episode['error']}", file=sys.stderr)
    return 0 if results["complete"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when all episodes ran, whatever their success, 1 when not, 2 for a mistake,
    130 when it was interrupted.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"vla-rollout: {error}", file=sys.stderr)
        return 2
    except (PolicyServerError, SimulatorDied) as error:
        print(f"vla-rollout: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvla-rollout: interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
