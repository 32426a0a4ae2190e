"""Runs of an ablation, one after the other or side by side: compose, train, time, evaluate, write the row."""

from __future__ import annotations

import gc
import json
import multiprocessing
import shutil
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from vla_core.parent import end_with_parent

from vla_train.ablate.check import check_rows
from vla_train.ablate.plan import Plan, Variant
from vla_train.ablate.rows import Row, locked, order_of, put_row, read_rows
from vla_train.ablate.table import write_tables
from vla_train.checkpointing import resume
from vla_train.composition import Composed
from vla_train.runs import make_run

ACT_WARMUP, ACT_CALLS = 3, 20
VARIANT_FILE = "variant.json"
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, subprocess.SubprocessError,
)  # fmt: skip
"""What ends one run and not the others; an interrupt ends them all."""


@dataclass(frozen=True)
class AblationJob:
    """One run of the plan, and how many go on beside it at most."""

    variant: Variant
    seed: int
    folder: Path
    command: str
    jobs: int = 1


def run_plan(plan: Plan, folder: Path, console: Console, command: str = "", jobs: int = 1) -> list[Row]:
    """Run what is not finished, writing rows and tables after each run; returns the rows of this plan.

    Args:
        plan: variants and seeds.
        folder: where rows, tables and runs go.
        console: for progress; with several jobs, each run's own goes to ``seed_N.log`` beside its folder.
        command: how this was started, for the reports.
        jobs: runs at a time, each in a process of its own.

    Raises:
        UserError: before any run, if rows in ``folder`` do not belong with the plan.
    """
    with locked(folder):
        rows = read_rows(folder)
        check_rows(rows, plan.variants, folder)
        order = order_of(rows, [variant.label for variant in plan.variants])
        finished = {row.key for row in rows if row.status == "finished"}
        cells = [(variant, seed) for variant in plan.variants for seed in plan.seeds]
        todo = []
        for variant, seed in cells:
            if (variant.label, seed) in finished:
                _say(console, f"{variant.label} seed {seed}: finished before")
            else:
                todo.append(AblationJob(variant, seed, folder, command, jobs))
        rows_of = _one_by_one(todo, console) if jobs == 1 else _side_by_side(todo, jobs)
        for number, row in enumerate(rows_of, start=1):
            put_row(folder, row, order)
            write_tables(read_rows(folder), folder, plan)
            result = f"failed: {row.error}" if row.error else "finished"
            _say(console, f"[{number}/{len(todo)}] {row.variant} seed {row.seed}: {result}")
        rows = read_rows(folder)
        write_tables(rows, folder, plan)
    wanted = {(variant.label, seed) for variant, seed in cells}
    return [row for row in rows if row.key in wanted]


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _one_by_one(todo: Sequence[AblationJob], console: Console) -> Iterator[Row]:
    for job in todo:
        _say(console, f"{job.variant.label} seed {job.seed}: runs")
        yield _attempt(job, console)


def _side_by_side(todo: Sequence[AblationJob], jobs: int) -> Iterator[Row]:
    # A fresh process a run: what one leaves on the device is gone before the next. Spawned, because CUDA
    # does not survive a fork; not multiprocessing's Pool, whose processes may not start data workers.
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(jobs, len(todo)))
    pool = ProcessPoolExecutor(
        workers, mp_context=context, max_tasks_per_child=1, initializer=end_with_parent
    )
    try:
        for future in as_completed([pool.submit(_attempt_with_log, job) for job in todo]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt_with_log(job: AblationJob) -> Row:
    path = job.folder / job.variant.folder / f"seed_{job.seed}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        return _attempt(job, Console(file=file, width=120))


def _attempt(job: AblationJob, console: Console) -> Row:
    variant, seed, folder = job.variant, job.seed, job.folder
    run_dir = folder / variant.folder / f"seed_{seed}"
    row = Row(variant.label, seed, "failed", variant.axes, variant.keys, variant.config, jobs=job.jobs)
    row = replace(row, run=str(run_dir.relative_to(folder)))
    try:
        row = replace(row, status="finished", **_run(job, run_dir, console))
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        row = replace(row, error=(kind + lines[0]).strip() or type(error).__name__)
        if run_dir.is_dir():
            (run_dir / "error.txt").write_text(traceback.format_exc(), "utf-8")
    gc.collect()
    torch.cuda.empty_cache()
    return replace(row, finished=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _run(job: AblationJob, run_dir: Path, console: Console) -> dict[str, Any]:
    """One run; the measured fields of its row."""
    variant, command = job.variant, job.command
    going_on = _can_resume(run_dir, variant)
    if run_dir.exists() and not going_on:
        shutil.rmtree(run_dir)
    (run_dir / "error.txt").unlink(missing_ok=True)
    run = make_run(variant.tree(job.seed, job.folder, going_on), console, command)
    info = run.begin({VARIANT_FILE: json.dumps(variant.config, indent=1)})
    outcome = run.train()
    measured = _read_metrics(run_dir / "metrics.jsonl") | {
        "parameters": info["parameters"]["total"],
        "trainable": info["parameters"]["trainable"],
        "latency_p50_ms": _latency_ms(run.composed),
        "device": _device_name(run.engine.device),
    }
    results = run.evaluate(outcome.checkpoint)
    if results is not None:
        counts = ("successes", "episodes", "failed")
        measured["success"] = {key: sum(int(task[key]) for task in results["tasks"]) for key in counts}
    run.report()
    return measured


def _can_resume(run_dir: Path, variant: Variant) -> bool:
    """Whether an interrupted run of this very config left a state to go on from."""
    path = run_dir / VARIANT_FILE
    if resume.newest(run_dir) is None or not path.is_file():
        return False
    return bool(json.loads(path.read_text("utf-8")) == variant.config)


def _read_metrics(path: Path) -> dict[str, Any]:
    lines: list[Mapping[str, float]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    last_step = lines[-1]["step"]
    speeds = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    validated = [line for line in lines if line["step"] == last_step and "val/action_mae" in line]
    metrics = {k: v for line in validated for k, v in line.items() if k.startswith("val/")}
    return {
        # The first interval holds what happens once: worker starts, memory, autotuning.
        "samples_per_s": statistics.median(speeds[1:] or speeds),
        "action_error": metrics.get("val/action_mae"),
        "metrics": metrics,
    }


def _latency_ms(composed: Composed, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of ``act()`` for one observation, from raw images to actions in real units."""
    source = (composed.data.val or composed.data.train)[0]
    observation = source[0].observation
    composed.policy.eval()
    times = []
    for call in range(ACT_WARMUP + ACT_CALLS):
        start = clock()
        composed.policy.act([observation], [call])
        times.append(1000 * (clock() - start))
    return statistics.median(times[ACT_WARMUP:])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
