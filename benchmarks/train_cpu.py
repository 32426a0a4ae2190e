"""The quickstart on a CPU: training samples/s with the share spent waiting for data, and act() latency.

    python benchmarks/train_cpu.py                      configs/quickstart.yaml, 2 threads, 40 steps
    python benchmarks/train_cpu.py trainer.batch_size=8 any override that vla-train takes

Training is ``vla_train.Trainer`` itself, without validation and closed loop: its meter reads every 10
steps, the first reading (warm-up) is dropped and the median of the others is shown. Latency is
``VLAPolicy.act`` of one raw observation at a time: pipeline, prompt, model, denoise steps, inverse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _device import median_and_p99, milliseconds
from rich.console import Console
from vla_core.testing import make_observation
from vla_train.composition import compose
from vla_train.presets import load_run_tree
from vla_train.trainer import Trainer


def main() -> None:
    """Measure and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=40, help="at least 20")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=100, help="act() calls that are timed")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    if args.steps < 20:
        parser.error("--steps must be at least 20: the first 10 are warm-up")
    ours = [
        "trainer.device=cpu", f"trainer.threads={args.threads}", f"trainer.max_steps={args.steps}",
        "trainer.log_every=10", "trainer.val_every=0", "trainer.save_every=0", "trainer.evaluation.tasks=[]",
        "datasets.val_fraction=0", "trackers=[jsonl]",
    ]  # fmt: skip
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        began = time.perf_counter()
        composed = compose(load_run_tree([args.config], [*ours, *args.overrides]))
        opened = time.perf_counter() - began
        trainer = Trainer(composed, run_dir, Console(quiet=True))
        run_dir.mkdir()
        trainer.train()
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    readings = [json.loads(line) for line in lines][1:]
    rate, wait = (statistics.median(r[k] for r in readings) for k in ("samples_per_s", "data_wait"))
    policy = composed.policy.eval()
    (spec,) = policy.specs.values()
    seen = [make_observation(spec, seed) for seed in range(8)]
    turn = iter(range(10**9))
    spent = milliseconds(lambda: policy.act([seen[next(turn) % 8]], [0]), args.chunks, 5, torch.device("cpu"))
    median, p99 = median_and_p99(spent)
    millions = sum(p.numel() for p in policy.model.parameters()) / 1e6
    print(
        f"{args.config}: {policy.framework}, {millions:.2f}M parameters, {args.threads} CPU threads, "
        f"torch {torch.__version__}; data opened and policy built in {opened:.1f} s\n"
    )
    print("| training | batch | samples/s | data wait |\n|---|---|---|---|")
    print(
        f"| {args.steps} steps | {composed.config.trainer.batch_size} | {rate:.0f} | {100 * wait:.0f} % |\n"
    )
    print("| act(), one observation | cameras | p50 ms | p99 ms |\n|---|---|---|---|")
    print(f"| {args.chunks} calls | {len(spec.observation.cameras)} | {median:.1f} | {p99:.1f} |")


if __name__ == "__main__":
    main()
