"""Action error on held-out recordings and closed-loop success of the runs of an ablation.

    uv run python benchmarks/fusion/evaluate.py --runs runs/fusion/policies --data runs/fusion \
        --tasks drawer-open,door-open --shift 8,12 --episodes 50 --out runs/fusion/results.jsonl

Reads ``rows.jsonl`` of ``vla-train ablate``, evaluates the checkpoint of every finished row under the cameras
of the training data (``held_same``) and under shifted ones (``held_shift``), and appends a line a run; a
line that is there already is not measured again. Several processes share the work, started at any time; with
``--beside PID`` they evaluate each policy as soon as that process has trained it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from constant_depth import DEPTH_M
from numpy.typing import NDArray
from sims import Setting, Simulators
from vla_core import Observation
from vla_core.policy import VLAPolicy
from vla_data import ArraysConfig, ArraysSource
from vla_train.ablate import Row, read_rows

BATCH = 128
LOOK_S = 2.0
"""Seconds between two looks for policies that are trained meanwhile."""


def done_already(path: Path) -> set[tuple[str, int]]:
    """(variant, seed) of the lines in ``path``."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # not half of a line that is being added
        lines = [json.loads(line) for line in file]
    return {(line["variant"], line["seed"]) for line in lines}


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line while no other process does."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether no other process evaluates the run in ``folder``; who dies leaves no claim behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def alive(pid: int) -> bool:
    """Whether there is such a process of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def to_evaluate(runs: Path, out: Path, beside: int, deadline: float) -> Iterator[Row]:
    """Finished rows that are not in ``out``, each claimed while it is with the caller.

    Args:
        beside: process that trains further ones; looked for until it ends (0: don't wait).
        deadline: ``time.monotonic()`` after which no further row is given.
    """
    while True:
        # Asked before the look: what it finishes after the look is found at the next one.
        more = beside > 0 and alive(beside)
        for row in read_rows(runs):
            if time.monotonic() > deadline:
                return
            if row.status != "finished" or row.key in done_already(out):
                continue
            with claimed(runs / row.run) as ours:
                # It may have been finished by another process between look and claim.
                if ours and row.key not in done_already(out):
                    yield row
        if not more:
            return
        time.sleep(LOOK_S)


class Actor:
    """Batched answers of a policy in real units; ``constant_depth`` puts every depth at one metre."""

    def __init__(self, policy: VLAPolicy, constant_depth: bool = False) -> None:
        self.policy, self.constant_depth = policy, constant_depth

    def __call__(
        self, observations: Sequence[Observation], seeds: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        out: list[NDArray[np.float32]] = []
        if self.constant_depth:
            observations = [
                replace(o, depth={name: np.full_like(d, DEPTH_M) for name, d in o.depth.items()})
                for o in observations
            ]
        for i in range(0, len(observations), BATCH):
            out += [c.actions for c in self.policy.act(observations[i : i + BATCH], seeds[i : i + BATCH])]
        return out


def action_error(act: Actor, source: ArraysSource, stride: int) -> dict[str, float]:
    """Mean absolute error over held-out frames in training standard deviations, and each episode's own."""
    scale = source.spec.statistics["action"].std
    errors: dict[int, list[float]] = {}
    index = range(0, len(source), stride)
    for start in range(0, len(index), BATCH):
        samples = [source[i] for i in index[start : start + BATCH]]
        predicted = act([s.observation for s in samples], list(index[start : start + BATCH]))
        for sample, actions in zip(samples, predicted, strict=True):
            off = np.abs(actions - sample.actions)[sample.action_mask.any(1)] / scale
            errors.setdefault(sample.meta["episode"], []).append(float(off.mean()))
    return {str(episode): float(np.mean(values)) for episode, values in errors.items()}


def main() -> None:
    """Evaluate what is not in ``--out`` yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds held_same and held_shift")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--same", default="0,0", help="orbit of the training cameras, degrees")
    parser.add_argument("--shift", default="8,12", help="orbit of the shifted cameras, degrees")
    parser.add_argument(
        "--episodes", type=int, default=50, help="a task and camera setting; 0: no closed loop"
    )
    parser.add_argument("--first_seed", type=int, default=50_000, help="far from every demonstration")
    parser.add_argument("--execute", type=int, default=8)
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--stride", type=int, default=4, help="every so many held-out frames")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further row after this")
    parser.add_argument("--beside", type=int, default=0, help="process id: wait for what it trains")
    parser.add_argument(
        "--constant_depth", action="store_true", help="for policies trained on constant_depth.py's recording"
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    held = {
        name: ArraysSource(ArraysConfig(str(args.data / name)), 16) for name in ("held_same", "held_shift")
    }
    cameras = held["held_same"].spec.observation.cameras
    names, size = tuple(c.name for c in cameras), cameras[0].height
    orbits = {name: tuple(float(x) for x in getattr(args, name).split(",")) for name in ("same", "shift")}
    tasks = args.tasks.split(",")
    settings = [Setting(task, orbits[where], names, size) for where in orbits for task in tasks]
    labels = [(where, task) for where in orbits for task in tasks]
    simulators: Simulators | None = None
    for row in to_evaluate(args.runs, args.out, args.beside, started + args.seconds):
        begun = time.monotonic()
        checkpoints = sorted((args.runs / row.run / "checkpoints").glob("steps_*"))
        policy = VLAPolicy.from_pretrained(checkpoints[-1], device).eval()
        act = Actor(policy, args.constant_depth)
        line: dict[str, Any] = {"variant": row.variant, "seed": row.seed, "run": row.run, "device": device}
        if device == "cuda":
            line["device"] = torch.cuda.get_device_name()
        line["errors"] = {name: action_error(act, source, args.stride) for name, source in held.items()}
        if args.episodes:
            # Not before there is a policy: their start takes as long as several evaluations.
            simulators = simulators or Simulators(settings, min(args.width, args.episodes))
            seeds = list(range(args.first_seed, args.first_seed + args.episodes))
            played = simulators.run(seeds, args.execute, act)
            line["success"] = {
                where: {task: [played[labels.index((where, task))][seed] for seed in seeds] for task in tasks}
                for where in orbits
            }
        line["seconds"] = time.monotonic() - begun
        append(args.out, line)
        means = {name: round(float(np.mean(list(e.values()))), 4) for name, e in line["errors"].items()}
        rates = {
            where: round(float(np.mean(list(by_task.values()))), 3)
            for where, by_task in line.get("success", {}).items()
        }
        print(f"{row.variant} seed {row.seed}  {means}  {rates}  {line['seconds']:.0f} s", flush=True)
    if simulators is not None:
        simulators.close()


if __name__ == "__main__":
    main()
