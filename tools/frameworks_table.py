"""Write docs/frameworks.md: every preset with its parameters, FLOP, tokens and times.

uv run tools/frameworks_table.py                      fails when a preset has no row, or a row no preset
uv run tools/frameworks_table.py --write              measures all on this machine and writes the page
uv run tools/frameworks_table.py --write NAME ...     measures these alone and keeps the other rows
uv run tools/frameworks_table.py --gpu                measures nothing, copies the columns of the GPU again

Times are of one machine and never compared. Columns of the GPU come from benchmarks/frameworks_gpu.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from vla_core.errors import UserError
from vla_core.testing import make_observation
from vla_train.presets import list_presets, load_preset
from vla_train.testing import trace as smoke
from vla_train.testing.sizes import framework_tree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "frameworks.md"
GPU_ROWS = ROOT / "benchmarks" / "frameworks_gpu.json"
WARMUP, REPEATS, ROWS = 3, 20, 4
OWN_BACKBONE = "as in the preset"
NONE = "-"
OURS = 10
"""Columns that are measured here."""
HEADER = """\
| framework | backbone [+ geometry, fusion] -> head | parameters, B | trainable, B | head, B \
| TFLOP, loss | TFLOP, chunk | prompt tokens | CPU tiny, step ms | CPU tiny, `act()` ms \
| GPU full, samples/s | GPU full, peak GiB | GPU full, chunk ms | GPU full, chunk as graph, ms |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
PAGE_TEXT = """\
# Frameworks

<!-- Written by `uv run tools/frameworks_table.py --write`; change that. -->

One row for each preset of `vla-train --list`. `uv run python -m vla_train.smoke NAME` builds one at size tiny
and prints parts, parameters, shapes, a loss and a chunk; `--size full` prints counts and shapes at full size.

{table}
- **Full size** is what the preset names: two cameras, images and options of the preset, the published
  shapes of its backbone. Parameters and FLOP are counted on shapes alone, without weights. FLOP are those
  of one forward pass of one sample: matrix products and convolutions as `torch.utils.flop_counter` counts
  them, attention in full; a loss with all its noise draws, a chunk with all its denoise steps. "-": it
  depends on values.
- **Prompt tokens** include padding: the text of every prompt is filled to `max_text_tokens`, so the tokenizer
  does not matter.
- **CPU tiny** has nothing to do with full size: the small random parts of the smoke test, float32, one
  thread, on {machine}, torch {torch}, transformers {transformers};
  median CPU time of {repeats} calls after {warmup} of warm-up. A step is forward, backward and AdamW on
  {rows} samples; `act()` answers one raw observation. It compares the overhead of frameworks on one machine,
  and rows measured at different times only roughly: the CPU time of a busy machine is longer, too.
- **GPU full** is copied from [the benchmarks](../benchmarks/README.md#every-preset-on-one-gpu): one {gpu},
  bf16, random weights, two views, prompt and horizon of the preset; a training step at batch 8 (eager; memory
  is its peak), and `predict` at batch 1, eager and as one CUDA graph. "-": not measured, or no graph.
"""


def milliseconds(fn: Callable[[], object]) -> float:
    """Median CPU time of a call: with one thread that is its wall time where nothing else runs."""
    for _ in range(WARMUP):
        fn()
    spent = []
    for _ in range(REPEATS):
        began = time.process_time()
        fn()
        spent.append(1e3 * (time.process_time() - began))
    return statistics.median(spent)


def tiny_times(name: str) -> tuple[float, float]:
    """A training step and ``act()`` of the tiny policy, in ms."""
    torch.manual_seed(0)
    policy = smoke.build(framework_tree(name, "tiny"), "tiny")
    batch = smoke.training_batch(policy, ROWS)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(policy.model(batch).values())).sum().backward()
        optimizer.step()

    policy.model.train()
    step_ms = milliseconds(step)
    policy.eval()
    ((_, spec),) = policy.specs.items()
    observation = make_observation(spec)
    return step_ms, milliseconds(lambda: policy.act([observation], [0]))


def billions(count: int) -> str:
    """Parameters in units of 1e9."""
    return f"{count / 1e9:.2f}"


def full_cells(name: str) -> list[str]:
    """Parameters, FLOP and prompt tokens at full size; a dash for what cannot be had."""
    try:
        policy = smoke.build(framework_tree(name, "full"), "full")
    except UserError as error:
        print(f"frameworks_table: {name}: {error}", file=sys.stderr)
        return [NONE] * 6
    total, trainable = smoke.count_parameters(policy.model)
    head, _ = smoke.count_parameters(policy.model.head)
    tokens = smoke.training_batch(policy, 1).tokens.input_ids.shape[1]
    with smoke.without_storage(policy):
        flop = smoke.count_flop(policy)
    shown = [NONE if n is None else f"{n / 1e12:.2f}" for n in flop]
    return [billions(total), billions(trainable), billions(head), *shown, str(tokens)]


def gpu_rows() -> dict[str, dict[str, Any]]:
    """Preset -> what was measured with its own backbone."""
    return {row["framework"]: row for row in json.loads(GPU_ROWS.read_text()) if row["vlm"] == OWN_BACKBONE}


def gpu_cells(name: str) -> list[str]:
    """Samples/s, peak GiB, chunk ms eager and as a graph."""
    row = gpu_rows().get(name, {})
    keys = ("samples_per_s", "peak_GiB", "chunk_ms", "chunk_graph_ms")
    return [f"{row[key]:.1f}" if key in row else NONE for key in keys]


def parts_cell(name: str) -> str:
    """The names of the parts, from the preset."""
    preset = load_preset(name)
    left = " + ".join(preset[part]["name"] for part in ("vlm", "geometry", "fusion") if preset.get(part))
    return f"{left} -> {preset['head']['name']}"


def row(name: str) -> str:
    """Measure one preset."""
    step, act = tiny_times(name)
    return line([f"`{name}`", parts_cell(name), *full_cells(name), f"{step:.1f}", f"{act:.1f}"])


def line(cells: list[str]) -> str:
    """What this machine measured, and the columns of the GPU."""
    return "| " + " | ".join([*cells, *gpu_cells(cells[0].strip("`"))]) + " |"


def existing() -> dict[str, str]:
    """Preset -> its row on the page as it stands."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", text, re.MULTILINE)}


def machine() -> str:
    """The CPU's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.machine()


def write(names: list[str]) -> None:
    """Measure ``names`` and write the page with the rows of the others kept."""
    torch.set_num_threads(1)
    kept = {name: text for name, text in existing().items() if name in list_presets()}
    rows = {name: line([c.strip() for c in text.strip("|").split("|")][:OURS]) for name, text in kept.items()}
    for name in names:
        rows[name] = row(name)
        print(rows[name], flush=True)
    PAGE.write_text(
        PAGE_TEXT.format(
            table=HEADER + "".join(f"{rows[name]}\n" for name in list_presets() if name in rows),
            machine=machine(),
            gpu=", ".join(sorted({row["device"] for row in gpu_rows().values()})),
            torch=torch.__version__.partition("+")[0],
            transformers=transformers.__version__,
            repeats=REPEATS,
            warmup=WARMUP,
            rows=ROWS,
        )
    )


def main() -> int:
    """Check that rows and presets agree, or measure with ``--write``; returns the exit code."""
    parser = argparse.ArgumentParser(description="docs/frameworks.md from the presets")
    parser.add_argument("--write", nargs="*", metavar="NAME", help="measure (these presets, or all)")
    parser.add_argument("--gpu", action="store_true", help="copy the columns of the GPU, measure nothing")
    args = parser.parse_args()
    names = args.write
    if args.gpu:
        write([])
    if names is not None:
        unknown = [name for name in names if name not in list_presets()]
        if unknown:
            parser.error(f"no preset '{unknown[0]}' (known: {', '.join(list_presets())})")
        write(names or list(list_presets()))
    differ = sorted(existing().keys() ^ list_presets().keys())
    if differ:
        print(
            f"frameworks_table: docs/frameworks.md and the presets differ in {', '.join(differ)}; "
            f"run `uv run tools/frameworks_table.py --write {' '.join(differ)}`",
            file=sys.stderr,
        )
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
