"""Loss curves of fast ways to train against an eager fp32 reference, on the shipped demonstrations.

    python benchmarks/train/curve.py --out curve.json             200 steps on one GPU, about 2 minutes
    python benchmarks/train/curve.py --fast engine=ddp,processes=2 --fast engine=zero2,processes=2
    python benchmarks/train/curve.py --tiny --steps 20            the same path on a CPU

The reference computes and keeps everything in fp32, uncompiled, in one process; it runs with three seeds (of
weights, order and noise). A fast way has the first of these seeds and the same data: bf16 compute with fp32
masters, compiled blocks and half of the activations computed again, with the ``trainer`` keys given by
``--fast`` (as in a row of speed.py) on top; several processes share the same global batch. Its distance is
the mean distance to the reference of its seed, of curves averaged over ``--smooth`` steps; the noise of the
seeds is the mean distance between two of the references. A distance up to the noise is ``within``.

The model is QwenGR00T of a middle size with random weights. All runs of one process go at once, on the first
GPU; those of several processes after them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from _packages import ROOT, environment
from speed import Row, Watched, config_of, readings_of

FAST = "precision=bf16,compile=blocks,activation_budget=0.5"
REFERENCE = "precision=fp32,compile=off"
SEEDS = (0, 1, 2)
MIDDLE = {
    "name": "QwenGR00T",
    "horizon": 8,
    "vlm": {
        "base_vlm": "tiny",
        "max_text_tokens": 84,
        "dtype": "float32",
        "tiny": {
            "hidden_size": 1536, "n_layers": 4, "n_heads": 12, "n_kv_heads": 2, "intermediate_size": 4096,
            "vision_hidden": 256, "vision_depth": 6, "vision_heads": 4, "vision_intermediate": 704,
        },
    },
    "head": {"size": "custom", "width": 384, "n_blocks": 6, "dropout": 0.0},
    "transforms": [{"name": "resize", "height": 112, "width": 112}, {"name": "normalize"}],
}  # fmt: skip


def smooth(values: list[float], width: int) -> list[float]:
    """Means of ``width`` values in a row."""
    return [statistics.fmean(values[i : i + width]) for i in range(max(1, len(values) - width + 1))]


def distance(one: list[float], other: list[float]) -> float:
    """Mean distance of two curves."""
    return statistics.fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def judge(references: list[list[float]], fast: list[float], width: int) -> dict[str, Any]:
    """Distance of a curve to the first reference, and the noise of the seeds."""
    smoothed = [smooth(curve, width) for curve in references]
    noise = statistics.fmean(distance(a, b) for a, b in combinations(smoothed, 2))
    found = distance(smoothed[0], smooth(fast, width))
    return {"distance": found, "noise": noise, "within": found <= noise}


class Run:
    """One curve, in a process of its own from now on."""

    def __init__(self, words: str, seed: int, args: argparse.Namespace, folder: Path) -> None:
        self.row = Row.parse(f"QwenGR00T:{args.batch}:{words}")
        self.row.batch = args.batch // self.row.processes
        self.words, self.seed, self.folder = words, seed, folder
        config = config_of(self.row, args, folder)
        if not args.tiny:
            config["framework"] = MIDDLE
        config["seed"] = seed
        config["trainer"] |= {
            "learning_rate": {"base": args.lr}, "schedule": "constant", "warmup_steps": args.steps // 10,
        }  # fmt: skip
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        self.watched = Watched(self.row, folder / "config.json", environment(folder / "packages"))

    def curve(self, steps: int, until: float) -> list[float]:
        """The losses of its steps; the process is ended."""
        try:
            while len(readings_of(self.folder)) < steps:
                if self.watched.process.poll() is not None or time.monotonic() > until:
                    said = [line for line in self.watched.lines if line.strip()]
                    raise SystemExit(f"{self.words}: no curve; " + "\n".join(said[-5:]))
                time.sleep(0.2)
        finally:
            self.watched.end()
        return [reading["loss"] for reading in readings_of(self.folder)[:steps]]


def plot(curves: dict[str, list[float]], width: int, path: Path) -> None:
    """All curves, smoothed; references are grey."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, values in curves.items():
        style: dict[str, Any] = {"color": "0.6", "lw": 1} if name.startswith("reference") else {"lw": 1.5}
        axes.plot(
            range(width, width + len(smooth(values, width))), smooth(values, width), label=name, **style
        )
    axes.set(xlabel="step", ylabel=f"loss, mean of {width} steps")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, judge, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fast", action="append", metavar="key=value,...", help="a way to train; repeatable")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, help="of all processes together (default 32; tiny: 4)")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--smooth", type=int, default=10, help="steps that are averaged")
    parser.add_argument("--tiny", action="store_true", help="size tiny on the CPU: checks the path")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "data" / "metaworld_faucet")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=Path("curve.json"), help="JSON; the plot lies beside it")
    args = parser.parse_args()
    args.data, args.cache, args.log_every = args.data.resolve(), "none" if args.tiny else "ram", 1
    args.workers = 0 if args.tiny else 2
    args.batch = args.batch or (4 if args.tiny else 32)
    until = time.monotonic() + args.limit
    ways = args.fast or [""]
    with tempfile.TemporaryDirectory() as name:
        started: dict[str, Run] = {}

        def start(label: str, words: str, seed: int) -> None:
            started[label] = Run(words, seed, args, Path(name) / str(len(started)))

        try:
            for seed in SEEDS:
                start(f"reference, seed {seed}", REFERENCE, seed)
            words = {f"fast {way}".strip(): ",".join(filter(None, (FAST, way))) for way in ways}
            alone = {
                label: text
                for label, text in words.items()
                if Row.parse(f"QwenGR00T:1:{text}").processes == 1
            }
            for label, text in alone.items():
                start(label, text, SEEDS[0])
            curves = {label: run.curve(args.steps, until) for label, run in started.items()}
            for label in words.keys() - alone.keys():
                start(label, words[label], SEEDS[0])
                curves[label] = started[label].curve(args.steps, until)
        finally:
            for run in started.values():
                run.watched.end()
    references = [curve for label, curve in curves.items() if label.startswith("reference")]
    verdicts = {
        label: judge(references, curve, args.smooth)
        for label, curve in curves.items()
        if not label.startswith("reference")
    }
    device = "CPU" if args.tiny else torch.cuda.get_device_name()
    what = {"device": device, "torch": torch.__version__, "steps": args.steps, "batch": args.batch,
            "lr": args.lr, "smooth": args.smooth, "base": FAST}  # fmt: skip
    args.out.write_text(json.dumps({**what, "verdicts": verdicts, "curves": curves}, indent=1))
    plot(curves, args.smooth, args.out.with_suffix(".svg"))
    for label, verdict in verdicts.items():
        word = "within" if verdict["within"] else "outside"
        print(f"{label}: distance {verdict['distance']:.4f}, seeds {verdict['noise']:.4f}: {word} seed noise")


if __name__ == "__main__":
    main()
