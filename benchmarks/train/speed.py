"""Training speed of ``vla-train`` itself: program, loader and optimizer, on the shipped demonstrations.

    python benchmarks/train/speed.py --out speed.json             the main rows on one GPU, about 6 minutes
    python benchmarks/train/speed.py --row QwenGR00T:16:precision=bf16,compile=blocks,processes=2,engine=ddp
    python benchmarks/train/speed.py --tiny                       the same path on a CPU at size tiny
    python benchmarks/train/speed.py --profile ...                and then where the time of three steps goes

A row is ``FRAMEWORK:BATCH[:key=value,...]``. Keys are those of ``trainer`` (``precision``, ``compile``,
``moments``, ``activation_budget``, ...), any dotted key of a config, and ``engine`` (local, ddp, fsdp2,
zero1, zero2, zero3) with ``processes``. The batch is that of one process.

Random weights of the true shapes of Qwen2.5-VL-3B; two views of 224 x 224, prompts padded to 212 tokens,
horizon 8; QwenGR00T draws 8 noise samples an observation and QwenPI 2. Every row is a process of its own that
is ended when it has been read often enough; it writes no checkpoint. Samples/s is the median of the readings
(10 steps each) after the first two; the wait for data is the mean of the same. MFU = 3 x useful forward FLOP
a sample x samples/s / (processes x 790e12): 2.03 TFLOP (QwenGR00T) and 2.28 TFLOP (QwenPI), the counts that
the rows of other systems were computed with. Memory is the most that torch had allocated on the first rank.
The first step is timed from the start of the command, imports included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from _packages import ROOT, environment
from profiled import markdown
from vla_core.testing.ports import reserved_port

PEAK_FLOPS = 790e12  # bf16 dense, measured on an H200; an H100 has the same tensor cores
USEFUL_FLOP = {"QwenGR00T": 2.03e12, "QwenPI": 2.28e12}
REPEATS = {"QwenGR00T": 8, "QwenPI": 2}
MAIN = (
    "QwenGR00T:16:precision=bf16",
    "QwenGR00T:16:precision=bf16,compile=blocks",
    "QwenGR00T:32:precision=bf16,compile=blocks,moments=bf16,activation_budget=0.8",
    "QwenPI:8:precision=bf16,compile=blocks,moments=bf16",
)
WARM_READINGS = 2


@dataclass
class Row:
    """What is run: ``words`` are overrides of the config."""

    framework: str
    batch: int
    engine: str = "local"
    processes: int = 1
    words: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Row:
        """``FRAMEWORK:BATCH[:key=value,...]``."""
        framework, batch, *rest = text.split(":", 2)
        pairs = [pair.partition("=") for pair in (rest[0].split(",") if rest else []) if pair]
        keys = {key: value for key, _, value in pairs}
        engine, processes = keys.pop("engine", None), int(keys.pop("processes", "1"))
        words = {key if "." in key else f"trainer.{key}": value for key, value in keys.items()}
        return cls(framework, int(batch), engine or ("ddp" if processes > 1 else "local"), processes, words)

    def command(self, config: Path, port: int, profiled: bool = False) -> list[str]:
        """How a user would start it; ``profiled``: the same program, some steps of which are recorded.

        ``port``: where its processes meet, kept for them until they do.
        """
        start = [str(Path(__file__).with_name("profiled.py"))] if profiled else ["-m", "vla_train"]
        program = [*start, "--config", str(config), *(f"{k}={v}" for k, v in self.words.items())]
        if self.engine == "local":
            return [sys.executable, *program]
        if self.engine == "ddp":
            return [
                sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(self.processes),
                "--master_addr", "127.0.0.1", "--master_port", str(port), *program,
            ]  # fmt: skip
        file = next(f for f in (ROOT / "configs").rglob("*.yaml") if f.stem.endswith(self.engine))
        return [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file),
            "--num_processes", str(self.processes), *program,
        ]  # fmt: skip


def config_of(row: Row, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The config of a row, but for its words."""
    if args.tiny:
        from vla_train.testing import framework_tree

        framework = {**framework_tree(row.framework, "tiny").data["framework"], "horizon": 8}
    else:
        framework = {
            "name": row.framework,
            "horizon": 8,
            "vlm": {"base_vlm": "3b", "max_text_tokens": 84},
            "head": {"repeated_diffusion_steps": REPEATS[row.framework]} if row.framework in REPEATS else {},
            "transforms": [{"name": "resize", "height": 224, "width": 224}, {"name": "normalize"}],
        }
    return {
        "framework": framework,
        "datasets": {
            "train": [{"name": "lerobot", "path": str(args.data), "cache": args.cache}],
            "val_fraction": 0,
            "num_workers": args.workers,
        },
        "trainer": {
            "max_steps": 100_000,
            "batch_size": row.batch,
            "log_every": args.log_every,
            "val_every": 0,
            "learning_rate": {"base": 1.0e-5},
            "device": "auto" if args.tiny else "cuda",
        },
        "run_root_dir": str(folder),
        "run_id": "run",
        "trackers": ["jsonl"],
    }


class Watched:
    """A running row: its lines with the time they came."""

    def __init__(self, row: Row, config: Path, env: dict[str, str], profiled: bool = False) -> None:
        self.kept = contextlib.ExitStack()
        self.command = row.command(config, self.kept.enter_context(reserved_port()), profiled)
        self.began = time.monotonic()
        self.first_step: float | None = None
        self.lines: list[str] = []
        # A group of its own, so that its workers end with it.
        self.process = subprocess.Popen(
            self.command, env=env, cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "the first is done" in line and self.first_step is None:
                self.first_step = time.monotonic() - self.began

    def end(self) -> None:
        """Kill it: asked to stop it would save. A launcher's ranks have sessions of their own."""
        if self.process.poll() is None:
            ranks = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, signal.SIGKILL)
            for rank in ranks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.kill()
            psutil.wait_procs(ranks, timeout=20)
        self.process.wait()
        self.reader.join(timeout=5)
        self.kept.close()


def readings_of(folder: Path) -> list[dict[str, float]]:
    """Whole lines of the run's metrics so far."""
    file = folder / "run" / "metrics.jsonl"
    text = file.read_text() if file.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def measure(row: Row, args: argparse.Namespace, until: float) -> dict[str, Any]:
    """Run a row until it has been read often enough, it ends, or the time is up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.json"  # JSON is YAML
        config.write_text(json.dumps(config_of(row, args, folder)))
        wanted = WARM_READINGS + args.readings
        env, profile = environment(folder / "packages"), folder / "profile.json"
        if args.profile:
            env |= {"PROFILE_OUT": str(profile), "PROFILE_FROM": str(wanted * args.log_every + 2)}

        def measured() -> bool:
            return len(readings_of(folder)) >= wanted and (profile.exists() or not args.profile)

        watched = Watched(row, config, env, args.profile)
        shown = " ".join(watched.command).replace(str(config), "CONFIG").replace(sys.executable, "python")
        shown = shown.replace(f"{ROOT}{os.sep}", "")
        late = False
        try:
            while not measured() and watched.process.poll() is None and not late:
                late = time.monotonic() > until
                time.sleep(0.2)
        finally:
            watched.end()
        found = readings_of(folder)[:wanted]
        parts = json.loads(profile.read_text()) if profile.exists() else None
    out: dict[str, Any] = {
        "framework": row.framework, "engine": row.engine, "processes": row.processes, "batch": row.batch,
        **{key.removeprefix("trainer."): value for key, value in row.words.items()},
        "command": shown, "readings": found, "first_step_s": watched.first_step,
        "seconds": time.monotonic() - watched.began,
        "estimate": next((line for line in watched.lines if "memory of one process" in line), None),
        **({} if parts is None else {"profile": parts}),
    }  # fmt: skip
    steady = found[WARM_READINGS:]
    if not steady:
        if late:
            out["error"] = "not read often enough in the time given"
            return out
        said = [line for line in watched.lines if line.strip()]
        errors = [line for line in said if "Error" in line or "error:" in line]
        out["error"] = (errors[:1] or said[-1:] or ["no reading in the time given"])[0][:300]
        return out
    rate = statistics.median(r["samples_per_s"] for r in steady)
    out |= {
        "samples_per_s": rate,
        "data_wait": statistics.mean(r["data_wait"] for r in steady),
        "memory_gib": steady[-1].get("memory_gib"),
        "loss": steady[-1]["loss"],
    }
    if not args.tiny and row.framework in USEFUL_FLOP and "framework.vlm.base_vlm" not in row.words:
        out["mfu"] = 3 * USEFUL_FLOP[row.framework] * rate / (row.processes * PEAK_FLOPS)
    return out


COLUMNS = (
    ("framework", "framework", ""), ("engine", "engine", ""), ("processes", "GPUs", ""),
    ("batch", "batch a GPU", ""), ("precision", "precision", ""), ("moments", "moments", ""),
    ("compile", "compile", ""), ("activation_budget", "budget", ""), ("samples_per_s", "samples/s", ".1f"),
    ("mfu", "MFU", ".1%"), ("memory_gib", "peak GiB", ".1f"), ("data_wait", "data wait", ".1%"),
    ("first_step_s", "first step, s", ".0f"),
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; what a row has not got is a dash, and a failure is a line below."""
    lines = ["| " + " | ".join(title for _, title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [format(row[k], f) if row.get(k) is not None else "-" for k, _, f in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    failed = [f"- {r['framework']}, batch {r['batch']}: {r['error']}" for r in rows if "error" in r]
    return "\n".join([*lines, *(["", "not measured:", *failed] if failed else [])])


def main() -> None:
    """Measure every row, print the table, write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--row", action="append", metavar="FRAMEWORK:BATCH[:key=value,...]")
    parser.add_argument("--tiny", action="store_true", help="size tiny on the CPU: checks the path")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "data" / "metaworld_faucet")
    parser.add_argument("--cache", default="none", help="of the data set: none decodes video (default)")
    parser.add_argument("--workers", type=int, help="of the loader (default 8; tiny: 0)")
    parser.add_argument("--readings", type=int, default=4, help="after the first two")
    parser.add_argument("--log-every", type=int, default=10, help="steps a reading")
    parser.add_argument("--profile", action="store_true", help="record three steps after the readings")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device here; --tiny runs the same path on the CPU")
    if args.workers is None:
        args.workers = 0 if args.tiny else 8
    args.data = args.data.resolve()
    texts = args.row or (["QwenGR00T:2:precision=bf16"] if args.tiny else MAIN)
    until = time.monotonic() + args.limit
    device = "CPU" if args.tiny else torch.cuda.get_device_name()
    what = {"device": device, "torch": torch.__version__, "data": args.data.name, "cache": args.cache,
            "workers": args.workers}  # fmt: skip
    rows: list[dict[str, Any]] = []
    for text in texts:
        if time.monotonic() > until:
            break
        rows.append(measure(Row.parse(text), args, until))
        shown = {k: v for k, v in rows[-1].items() if k not in ("readings", "command", "profile")}
        print(json.dumps(shown), flush=True)
        if "profile" in rows[-1]:
            print(f"\n{text}\n\n{markdown(rows[-1]['profile'])}\n", flush=True)
        if args.out:
            args.out.write_text(json.dumps({**what, "rows": rows}, indent=1))
    print(f"\n{json.dumps(what)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
