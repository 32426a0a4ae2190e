"""``vla-data``: record demonstrations, look at datasets, describe their robots."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.dotted import dotted
from vla_core.errors import ConfigError, UserError
from vla_core.options import Options
from vla_core.ranges import Range

from vla_data.cache_cli import add_cache
from vla_data.calvin_cli import add_calvin
from vla_data.convert_cli import add_convert
from vla_data.groot_cli import add_groot
from vla_data.other_commands import add_others
from vla_data.stats_cli import add_stats
from vla_data.view_cli import add_view


def _record(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data._record import RecordConfig, record

    config = RecordConfig(
        env=args.env,
        tasks=tuple(args.task),
        episodes=args.episodes,
        out=args.out,
        seed=args.seed,
        noise=args.noise,
        workers=args.workers,
        env_options=dotted(rest, "env", "vla-data record"),
        format=args.format,
    )
    started = time.monotonic()

    def progress(done: int, total: int, failed: int) -> None:
        seconds = time.monotonic() - started
        left = seconds / done * (total - done)
        line = f"{done}/{total} episodes, {failed} failed, {seconds:.0f} s, {left:.0f} s left"
        # On a terminal one line that rewrites itself; in a log a line per tenth.
        if sys.stderr.isatty():
            print(f"\r{line:<70}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            print(line, file=sys.stderr, flush=True)

    report = record(config, progress)
    size = sum(f.stat().st_size for f in config.out.rglob("*") if f.is_file())
    for task in config.tasks:
        seeds = report.failed[task]
        failures = f"failed seeds {list(seeds)}" if seeds else "no failures"
        print(f"{task}: {report.kept[task]} episodes kept, {failures}")
    for line in report.broken:
        print(line, file=sys.stderr)
    print(f"{config.out}: {report.frames} frames, {size / 1e6:.2f} MB, {time.monotonic() - started:.0f} s")


def _inspect(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.inspect import describe, plot

    _no_rest(rest)
    if args.fps is not None:
        problem = Range(low=0, open_low=True).problem(args.fps)
        if problem is not None:
            raise ConfigError(f"--fps: {problem}")
    print(describe(args.dir, args.robot, args.fps))
    if args.episode is not None or args.out is not None:
        episode = 0 if args.episode is None else args.episode
        out = args.out or Path(f"{args.dir.resolve().name}_episode_{episode}.png")
        plot(args.dir, episode, out)
        print(f"\nepisode {episode} plotted to {out}")


def _no_rest(rest: Sequence[str]) -> None:
    if rest:
        raise ConfigError(f"unknown argument '{rest[0]}'")


def _describe(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.robot.propose import propose

    _no_rest(rest)
    text = propose(args.dir)
    if args.out is None:
        print(text, end="")
        return
    if args.out.exists():
        raise ConfigError(f"--out: {args.out} exists; name another file, or remove it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out}: check its guesses, then train with datasets.train.0.robot={args.out}")


def _doctor(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vla_data.doctor import examine

    _no_rest(rest)
    found = {"error": 0, "warning": 0, "fact": 0}
    for finding in examine(args.dir, args.robot, decode=not args.quick):
        found[finding.severity] += 1
        print(f"{finding.severity:<8} {finding.text}", flush=True)
    counted = (f"{found[kind]} {kind}{'' if found[kind] == 1 else 's'}" for kind in ("error", "warning"))
    print(f"{args.dir}: {', '.join(counted)}")
    return 1 if found["error"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = Options(prog="vla-data", description="Record, inspect and check robot datasets (LeRobot).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rec = commands.add_parser(
        "record",
        allow_abbrev=False,
        help="record scripted experts of a simulator",
        description="Record successful demonstrations of a simulator's scripted experts. "
        "Options of the simulator itself are given as --env.KEY VALUE, e.g. --env.image_size 224.",
    )
    rec.add_argument("--env", required=True, help="simulator, an entry point of vla.envs (metaworld)")
    rec.add_argument("--task", action="append", required=True, help="task; repeat for several")
    rec.add_argument("--episodes", type=int, required=True, help="successful episodes per task")
    rec.add_argument("--out", type=Path, required=True, help="new directory of the dataset")
    rec.add_argument("--seed", type=int, default=0, help="first episode seed (default: 0)")
    rec.add_argument("--workers", type=int, default=1, help="simulator processes (default: 1)")
    rec.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="std of Gaussian noise on the executed (never on the recorded) actions, in action units: "
        "demonstrations then show how to recover (default: 0)",
    )
    rec.add_argument(
        "--format",
        default="lerobot",
        choices=("lerobot", "arrays"),
        help="lerobot: LeRobot v3.0, images as video (default); arrays: plain .npy files, exact pixels",
    )
    rec.set_defaults(run=_record)
    look = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="print what a dataset holds, plot an episode",
        description="Print episodes, features, instructions, ranges and warnings of a LeRobot "
        "dataset; with --episode or --out also plot one episode.",
    )
    look.add_argument("dir", type=Path, metavar="DIR", help="the dataset's directory")
    look.add_argument("--episode", type=int, help="episode to plot (default: 0 with --out)")
    look.add_argument("--out", type=Path, help="picture to write (.png, .svg, .pdf)")
    look.set_defaults(run=_inspect)
    _add_readers(commands)
    add_stats(commands)
    add_cache(commands)
    add_convert(commands)
    add_calvin(commands)
    add_view(commands)
    add_groot(commands)
    add_others(commands)
    return parser


def _add_readers(commands: Any) -> None:
    robot = "YAML file that describes the robot"
    commands.choices["inspect"].add_argument("--robot", help=robot)
    rate = "control rate to read it at (default: as recorded)"
    commands.choices["inspect"].add_argument("--fps", type=float, metavar="HZ", help=rate)
    propose = commands.add_parser(
        "describe",
        allow_abbrev=False,
        help="propose a robot file for a dataset",
        description="Print a robot file (cameras, state and action groups) for a LeRobot dataset, from its "
        "names, its modality.json and its numbers. Comments say what was guessed.",
    )
    propose.add_argument("dir", type=Path, metavar="DIR", help="the dataset's directory")
    propose.add_argument("--out", type=Path, help="write it to a file that does not exist yet")
    propose.set_defaults(run=_describe)
    doctor = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="examine every file of a dataset; exit code 1 if something is wrong",
        description="Open every file of a LeRobot dataset, decode every picture, and list all that is wrong.",
    )
    doctor.add_argument("dir", type=Path, metavar="DIR", help="the dataset's directory")
    doctor.add_argument("--robot", help=robot)
    doctor.add_argument("--quick", action="store_true", help="do not decode, check time stamps alone")
    doctor.set_defaults(run=_doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args, rest = _parser().parse_known_args(argv)
    try:
        code: int | None = args.run(args, rest)
    except UserError as error:
        print(f"vla-data {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        said = f"{error.filename} cannot be read or written ({error.strerror})" if error.filename else error
        print(f"vla-data {args.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nvla-data {args.command}: interrupted", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
