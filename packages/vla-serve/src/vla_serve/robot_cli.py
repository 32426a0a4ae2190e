"""``vla-robot``: drive a robot with a served policy."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from vla_core.dotted import dotted
from vla_core.errors import UserError
from vla_core.heap import settle_heap, settled_heap

from vla_serve.access_args import access
from vla_serve.clients import arguments
from vla_serve.clients.client import PolicyClient
from vla_serve.clients.control_loop import ControlLoop
from vla_serve.clients.errors import PolicyServerError
from vla_serve.contract_text import contract_lines
from vla_serve.ensemble_args import ensembling_of
from vla_serve.robot import Commander, DriveReport, DriveSettings, Robot, Wiring, drive, read_repack
from vla_serve.robot.make import make_robot
from vla_serve.robot.options import make_parser, steps_of
from vla_serve.robot.stop import StopKeys


def _say(line: str) -> None:
    print(f"vla-robot: {line}", flush=True)


@contextlib.contextmanager
def _connected(robot: Robot) -> Iterator[None]:
    robot.connect()
    try:
        yield
    finally:
        robot.disconnect()


def _summary(report: DriveReport, commander: Commander, loop: ControlLoop) -> str:
    times = np.array(report.round_trips_ms or [np.nan])
    changed = [f"{name} bounded {n}x" for name, n in commander.bounded.items() if n]
    changed += [f"{name} slowed {n}x" for name, n in commander.slowed.items() if n]
    return (
        f"{report.steps} steps in {report.seconds:.1f} s, held for {report.held}, {report.outages} outages, "
        f"{report.overruns} steps overran, {loop.stats.late} late answers, round trip "
        f"{np.percentile(times, 50):.0f} ms (p95 {np.percentile(times, 95):.0f})"
        + (f"; {', '.join(changed)}" if changed else "")
    )


def _pause(keys: StopKeys, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not keys():
        time.sleep(0.05)
    keys.next_episode()


def _recorder(args: Any, client: PolicyClient, commander: Commander, stack: ExitStack) -> Any:
    if args.record is None:
        return None
    try:
        from vla_serve.robot.lerobot_record import LeRobotRecorder
    except ModuleNotFoundError as error:
        raise UserError(f"'{error.name}' is not installed: pip install 'vla-serve[robot]'") from error
    spec = replace(client.contract, action=commander.recorded_spec)
    made_by = {"program": "vla-robot", "policy": args.policy, "max_step": args.max_step, "rtc": args.rtc}
    return stack.enter_context(LeRobotRecorder(args.record, spec, args.instruction, made_by))


def _run(args: Any, words: Sequence[str]) -> int:
    settings = DriveSettings(
        args.instruction, args.episode_s, args.watchdog_s, args.restart_s, dry_run=args.dry_run
    )
    if args.episodes < 1 or args.reset_s < 0:
        raise UserError("--episodes: must be at least 1, and --reset_s not negative")
    if args.episodes > 1 and args.episode_s is None:
        _say("episodes end with the key n")
    repack, options, mixed = read_repack(args.repack), access(args), ensembling_of(args)
    with ExitStack() as stack:
        # A Robot has pictures and numbers: no depth, no calibration.
        client = PolicyClient(args.address, **options, real_time_chunking=args.rtc, camera_inputs={})
        if args.wait_s:
            client.wait_ready(arguments.seconds(args.wait_s, "--wait_s"))
        stack.enter_context(client)
        loop = stack.enter_context(
            ControlLoop(
                client,
                rtc=args.rtc,
                execute_steps=args.execute_steps,
                ensembling=mixed,
                busy_s=args.timeout_s,
            )
        )
        contract = client.contract
        print(*contract_lines(contract, client.max_delay_steps, client.camera_inputs), sep="\n")
        robot = make_robot(words)
        wiring = Wiring(contract, robot, repack)
        steps = steps_of(args.max_step, [group.name for group in contract.action.groups])
        commander = Commander(wiring, repack, client.action_bounds, steps)
        print("robot", *wiring.lines(), "commands", *commander.lines(), sep="\n", flush=True)
        recorder = _recorder(args, client, commander, stack)
        stack.enter_context(_connected(robot))
        keys = stack.enter_context(StopKeys())
        stack.enter_context(settled_heap())
        _say("q, Esc, space or Ctrl-C stops the robot" + (", n ends an episode" if args.episodes > 1 else ""))
        for episode in range(args.episodes):
            settle_heap()  # a full collection within the episode would hold commands back
            commander.bounded.clear()
            commander.slowed.clear()
            try:
                report = drive(
                    *(robot, client, loop, wiring, commander, settings),
                    stop=keys,
                    say=_say,
                    recorder=recorder,
                )
            finally:
                if recorder is not None:
                    recorder.end_episode()
            _say(f"episode {episode + 1}: {_summary(report, commander, loop)}")
            keys.next_episode()
            if keys.stopped:
                break
            if episode + 1 < args.episodes:
                _say(f"reset the scene; the next episode begins in {args.reset_s:g} s (n: now)")
                _pause(keys, args.reset_s)
    if args.record is not None and args.record.exists():
        _say(f"recorded {args.record}: {recorder.episodes} episode(s), {recorder.frames} frames")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 after a stop, 1 when server or robot failed, 2 for a mistake, 130 when it was
    interrupted before the robot moved.
    """
    args, words = make_parser().parse_known_args(argv)
    try:
        dotted(words, "robot", "vla-robot")  # a mistake in it needs no server
        return _run(args, words)
    except UserError as error:
        print(f"vla-robot: {error}", file=sys.stderr)
        return 2
    except (PolicyServerError, OSError) as error:  # lerobot's errors of a device are ConnectionErrors
        print(f"vla-robot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvla-robot: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
