"""What each fusion costs at full size: latency at batch 1, training time, parameters and FLOP.

    python benchmarks/fusion/cost.py --out DIR        one GPU of 80 GB, under 6 minutes
    python benchmarks/fusion/cost.py --size tiny      the same path on a CPU

Qwen2.5-VL-3B shapes, MapAnything's giant encoder (frozen) and LayerwiseFM with random weights in bf16, two
views of 224 x 224 with depth and calibration. Backbone, encoder and head are built once; variants differ
in the fusion alone. A variant is always timed in turn with the policy without geometry, call by call, and
what is reported as added is the median of those differences. DIR gets ``cost.json`` and ``cost.md``, also
when time runs out before everything is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _cost_calls import Call, against, in_rounds, training_step
from _cost_parts import (
    FUSIONS,
    HEADS,
    NONE,
    POLICIES,
    Recipe,
    batch_of,
    build_parts,
    own_parameters,
    with_fusion,
)
from _cost_report import report
from _device import captured, host_syncs, milliseconds, seconds_per_call, synchronize
from _models import FULL, TINY, instruction
from full_size import Run, check, relative
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.policy import VLAPolicy


@dataclass
class Cost(Run):
    """Everything built, and one row of figures a variant."""

    recipe: Recipe = POLICIES["QwenMapAnythingPI"]
    geometry: str = "giant"
    batch: int = 8
    repeats: int = 30
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    encoder_rows: list[dict[str, Any]] = field(default_factory=list)
    policies: dict[str, VLAPolicy] = field(default_factory=dict)
    encoder: nn.Module = field(default_factory=nn.Module)
    words: str = ""

    @property
    def plain(self) -> VLAPolicy:
        """The policy without geometry."""
        return self.policies[NONE]

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU (graphs, streams)."""
        return self.device.type == "cuda"


def build(run: Cost, variants: list[str], head: str) -> None:
    """Backbone, head and encoder once, and every fusion."""
    plain, run.encoder = build_parts(run.recipe, run.size, run.geometry, head, run.device, run.dtype)
    run.words = instruction(plain, run.size.text_tokens)
    for name in [NONE, *variants]:
        policy = run.policies[name] = with_fusion(plain, run.encoder, name)
        run.rows[name] = {"parameters": sum(p.numel() for p in own_parameters(policy, plain, run.encoder))}
    synchronize(run.device)
    parts: dict[str, Any] = {"backbone": plain.model.vlm, "encoder": run.encoder, "head": plain.model.head}
    run.facts["parameters"] = {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items()}


@torch.no_grad()
def count(run: Cost, name: str) -> None:
    """FLOP of one answer at batch 1: of the encoder (when it runs), and of everything else."""
    call, row = Call(run, name), run.rows[name]
    fusion = call.policy.model.fusion
    learning = [p for p in call.policy.model.parameters() if p.requires_grad]
    for parameter in learning:  # the counter's bookkeeping trips over views of what wants a gradient
        parameter.requires_grad_(False)
    try:
        row["flop"] = _flop(call)
        row["encoder_flop"] = 0
        if fusion is not None and not fusion.traits.train_only and fusion.traits.reads_geometry:
            batch = call.batch
            row["encoder_flop"] = _flop(lambda: run.encoder(batch.images, batch.cameras, fusion.needs))
            row["flop"] -= row["encoder_flop"]
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _flop(fn: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        fn()
    return counter.get_total_flops()


@torch.inference_mode()
def infer(run: Cost, name: str) -> None:
    """Latency at batch 1, eager and as graphs, and whether they agree."""
    row, repeats = run.rows[name], run.repeats
    base, call = Call(run, NONE), Call(run, name)
    against(row, "", in_rounds({"base": base, "eager": call}, max(2, repeats // 3), run.device), "base")
    eager, without = call.moved().clone(), base.moved().clone()
    row["moved_by_geometry"] = relative(eager, without)
    check(run, f"{name}: non-finite actions", float((~eager.isfinite()).sum()), 0)
    fusion = run.policies[name].fusion
    assert fusion is not None
    idle = fusion.traits.train_only
    wrong = f"{name}: actions {'differ from' if idle else 'equal'} those without geometry"
    check(run, wrong, float((row["moved_by_geometry"] == 0) != idle), 0)
    if not run.cuda:
        return
    row["host_syncs"] = host_syncs(call)
    calls = {
        "graph": Call(run, name, overlap=False),
        "overlap": call,
        "given": Call(run, name, given=True),
    }
    replays = {key: captured(each) for key, each in {"base": base, **calls}.items()}
    against(row, "graph_", in_rounds(replays, repeats, run.device), "base")
    for key, each in calls.items():
        replays[key]()
        error = row[f"{key}_error"] = relative(each.moved(), eager)
        check(run, f"{name}: {key} graph against eager, relative error", error, 2e-2)


def train(run: Cost, name: str, shared: torch.optim.Optimizer) -> None:
    """Milliseconds of a training step, in turn with those of the policy without geometry."""
    own = own_parameters(run.policies[name], run.plain, run.encoder)
    optimizers = {NONE: [shared], name: [shared]}
    if own:
        optimizers[name] = [shared, torch.optim.AdamW(own, lr=1e-5, fused=run.cuda)]
    steps = {}
    for key in {NONE: 0, name: 0}:
        policy = run.policies[key].train()
        run.encoder.eval()
        batch = batch_of(policy, run.batch, run.words, run.device, targets=True)
        steps[key] = functools.partial(training_step, policy, batch, optimizers[key])
    try:
        if run.cuda:
            torch.cuda.reset_peak_memory_stats()
        for step in steps.values():
            check(run, f"{name}: training loss is not finite", float(~step().isfinite()), 0)
            step()
        spent: dict[str, list[float]] = {key: [] for key in steps}
        for _ in range(5 if run.cuda else 2):
            for key, step in steps.items():
                spent[key].append(1e3 * seconds_per_call(step, 1 + run.cuda, 0, run.device))
        row = run.rows[name]
        row["train_ms"] = statistics.median(spent[name])
        row["train_added_ms"] = statistics.median(
            a - b for a, b in zip(spent[name], spent[NONE], strict=True)
        )
        if run.cuda:
            row["train_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    finally:
        for key in steps:
            run.policies[key].zero_grad(set_to_none=True)
            run.policies[key].eval()


@torch.inference_mode()
def encoder_alone(run: Cost, mode: str) -> None:
    """The encoder on two views with intrinsics, eager and as a graph."""
    batch, kept = batch_of(run.plain, 1, run.words, run.device, targets=False), {}

    def encode() -> None:
        kept["tokens"] = run.encoder(batch.images, batch.cameras).tokens

    def add(name: str, call: Callable[[], Any]) -> None:
        spent = milliseconds(call, run.repeats, 3, run.device)
        row = {"mode": name, "ms": statistics.median(spent), "slowest_ms": max(spent)}
        tokens = kept["tokens"].float()
        reference = run.facts.setdefault("encoder_tokens", tokens)
        check(run, f"encoder {name} against eager, relative error", relative(tokens, reference), 5e-2)
        if run.cuda and name == mode:
            row["host_syncs"] = host_syncs(call)
        run.encoder_rows.append(row)

    add(mode, encode)
    if run.cuda:
        add(f"{mode} + CUDA graph", captured(encode))


@torch.inference_mode()
def with_compiled_encoder(run: Cost, name: str) -> None:
    """Latency of the graph with overlap again."""
    base, call = Call(run, NONE), Call(run, name)
    replays = {"base": captured(base), "overlap": captured(call)}
    against(run.rows[name], "compiled_", in_rounds(replays, run.repeats, run.device), "base")


def compile_encoder(encoder: Any) -> None:
    """``torch.compile`` each block in place; equal blocks share their code."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    for block in [*encoder.encoder.blocks, *encoder.info_sharing.self_attention_blocks]:
        block.compile(dynamic=False)


def measure(run: Cost, names: list[str], head: str, save: Callable[[], None], wanted: set[str]) -> None:
    """Every section; results are saved after each, and the slow compilation comes last."""

    def section(name: str, limit_s: float, fn: Callable[[], None]) -> None:
        run.section(name, limit_s, fn)
        save()

    section("build", 120, lambda: build(run, names, head))
    if not run.policies:
        return
    section("encoder alone", 30, lambda: encoder_alone(run, "eager"))
    for name in [NONE, *names] if "inference" in wanted else ():
        section(f"{name}: FLOP", 20, functools.partial(count, run, name))
    for name in names if "inference" in wanted else ():
        section(f"{name}: inference", 45, functools.partial(infer, run, name))
    shared = torch.optim.AdamW(run.plain.parameters(), lr=1e-5, fused=run.cuda)
    for name in names if "training" in wanted else ():
        section(f"{name}: training", 45, functools.partial(train, run, name, shared))
    del shared
    if run.cuda and "compiled" in wanted:
        compile_encoder(run.encoder)
        section("encoder compiled", 120, lambda: encoder_alone(run, "compiled"))
        for name in names:
            section(f"{name}: compiled encoder", 20, functools.partial(with_compiled_encoder, run, name))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny runs on a CPU")
    parser.add_argument("--variants", nargs="+", default=list(FUSIONS), choices=list(FUSIONS))
    parser.add_argument("--policy", default="QwenMapAnythingPI", choices=list(POLICIES))
    parser.add_argument(
        "--head", choices=list(HEADS), help="small: blocks of width 1024 (default: the policy's)"
    )
    parser.add_argument("--batch", type=int, help="rows of a training step (default: the policy's; tiny: 2)")
    parser.add_argument("--no-inference", action="store_true", help="leave latency and FLOP out")
    parser.add_argument("--no-train", action="store_true", help="leave training out")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled encoder out")
    parser.add_argument("--budget-s", type=float, default=340.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="directory for cost.json and cost.md")
    args = parser.parse_args(arguments)
    tiny = args.size == "tiny"
    if not tiny and not torch.cuda.is_available():
        parser.error("no CUDA device here; --size tiny runs the same path on a CPU")
    began, recipe = time.perf_counter(), POLICIES[args.policy]
    if tiny:
        torch.set_num_threads(1)
        # 112 pixels are whole patches of both the backbone and the encoder.
        size, where, geometry = replace(TINY, image=112), torch.device("cpu"), "tiny"
    else:
        size, where, geometry = replace(FULL, base_vlm=recipe.size), torch.device("cuda"), "giant"
    run = Cost(size, where, began + args.budget_s, recipe=recipe, geometry=geometry)
    run.batch, run.repeats = args.batch or (2 if tiny else recipe.batch), 2 if tiny else 30
    head = args.head or recipe.head
    what = (
        f"{'CPU, 1 thread' if tiny else torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"{str(run.dtype).removeprefix('torch.')}, {args.policy}: {recipe.vlm.__name__} {size.base_vlm}, "
        f"MapAnything {geometry}, LayerwiseFM {head}, 2 views of {size.image} x {size.image}, "
        f"training batch {run.batch}"
    )

    def save() -> None:
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            facts = {k: v for k, v in run.facts.items() if not isinstance(v, torch.Tensor)}
            found = {"rows": run.rows, "encoder": run.encoder_rows, "checks": run.checks, "facts": facts}
            found |= {"errors": run.errors, "seconds": run.seconds}
            (args.out / "cost.json").write_text(json.dumps({"what": what, **found}, indent=1) + "\n")
            (args.out / "cost.md").write_text(report(run, what) + "\n")

    wanted = {
        "inference": not args.no_inference,
        "training": not args.no_train,
        "compiled": not args.no_compile,
    }
    measure(run, args.variants, head, save, {name for name, yes in wanted.items() if yes})
    print("\n" + report(run, what))
    if not all(row["passed"] for row in run.checks):
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
