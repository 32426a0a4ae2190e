"""``vla-rollout``: success rates of a served policy in a simulator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from vla_core.errors import UserError

from vla_serve import _rollout_compare
from vla_serve._rollout import RolloutSettings, rollout
from vla_serve._rollout_pool import SimulatorDied
from vla_serve._rollout_results import conditions, save, suite, table
from vla_serve._rollout_resume import read_results
from vla_serve._rollout_worker import Done
from vla_serve.client_errors import PolicyServerError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-rollout",
        description="Success rates of a served policy in a simulator.",
        epilog="Options of the simulator: --env.KEY VALUE, for example --env.image_size 128. "
        "Two results side by side: vla-rollout compare A B.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--address", required=True, help="HOST:PORT of vla-serve")
    add("--env", required=True, help="simulator, for example metaworld")
    add("--task", action="append", required=True, dest="tasks", help="task; may be given several times")
    add(
        "--out",
        type=Path,
        required=True,
        help="directory of results, report and videos; a call goes on there",
    )
    add("--overwrite", action="store_true", help="replace what --out holds instead of going on")
    add("--episodes", type=int, default=20, help="per task (default: %(default)s)")
    add("--seed", type=int, default=10_000, help="of the first episode (default: %(default)s)")
    add("--workers", type=int, default=2, help="simulator processes (default: %(default)s)")
    add("--execute_steps", type=int, help="actions executed per chunk (default: half of it, rounded up)")
    add(
        "--rtc",
        action="store_true",
        help="real-time chunking: answers continue the chunk being executed (needs --delay_steps)",
    )
    add("--delay_steps", type=int, help="control steps an answer takes (default: the simulator waits)")
    add("--instruction", help="say this in every episode")
    add("--instruction_from", metavar="TASK", help="say what TASK would say (swap experiment)")
    add("--videos", choices=("failures", "all", "none"), default="failures", help="default: %(default)s")
    add("--max_failures_videos", type=int, default=5, help="per task (default: %(default)s)")
    add("--policy", default="", help="name on the server (default: its only one)")
    add("--embodiment", default="", help="name in the policy (default: its only one)")
    add("--encoding", choices=("raw", "png", "jpeg"), default="raw", help="of images (default: %(default)s)")
    add("--timeout_s", type=float, default=30.0, help="deadline of a request (default: %(default)s)")
    add("--restart_s", type=float, default=120.0, help="wait for a server that went (default: %(default)s)")
    return parser


def _env_options(rest: Sequence[str]) -> dict[str, Any]:
    """``--env.key value`` and ``--env.key=value``, values as in YAML."""
    options: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--env."):
            raise UserError(f"unknown argument '{word}'; see vla-rollout --help")
        key, equals, value = word[len("--env.") :].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--env.{key}: a value is missing")
            value = words.pop(0)
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value  # a sentence with a colon is a sentence
    return options


def _progress(done: Done, count: int, total: int) -> None:
    episode = done.episode
    outcome = "success" if episode.success else "failure"
    if episode.error is not None:
        outcome = f"ERROR {episode.error}"
    print(f"[{count}/{total}] {episode.task} seed {episode.seed}: {outcome}", flush=True)


def _compare(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vla-rollout compare",
        description="The paired difference of two results over the same tasks and seeds, and what flipped.",
    )
    parser.add_argument("first", metavar="A", type=Path, help="results.json or its directory")
    parser.add_argument("second", metavar="B", type=Path, help="another one")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(argv)
    result = _rollout_compare.compare(read_results(args.first), read_results(args.second))
    print(_rollout_compare.text(result, str(args.first), str(args.second)))
    if args.json is not None:
        save(result, args.json)
    return 0


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] == "compare":
        return _compare(argv[1:])
    args, rest = _parser().parse_known_args(argv)
    given = vars(args)
    out, tasks, overwrite = given.pop("out"), tuple(given.pop("tasks")), given.pop("overwrite")
    settings = RolloutSettings(**given, tasks=tasks, env_options=_env_options(rest))
    results = rollout(settings, out, on_episode=_progress, overwrite=overwrite)
    print(f"\n{table(results)}\n{suite(results)}{conditions(results)}\n")
    print(f"{out / 'results.json'}\n{out / 'report.html'}")
    failed = [e for e in results["episodes"] if e["error"] is not None]
    for episode in failed:
        print(f"vla-rollout: {episode['task']} seed {episode['seed']}: {episode['error']}", file=sys.stderr)
    return 0 if results["complete"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when all episodes ran, whatever their success, 1 when not, 2 for a mistake."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"vla-rollout: {error}", file=sys.stderr)
        return 2
    except (PolicyServerError, SimulatorDied) as error:
        print(f"vla-rollout: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
