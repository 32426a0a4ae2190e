"""Qwen2.5-VL-3B shapes with random weights: training, inference and checks on one GPU.

    python benchmarks/full_size.py --out full_size.json     one GPU, under 5 minutes
    python benchmarks/full_size.py --tiny                   the same path on a CPU at size tiny

Two views of 224 x 224, 212 prompt tokens without padding, horizon 8; QwenPI (head 2048 x 36 blocks, 2
noise draws an observation) and QwenOFT. Training is one step in bf16 as it is: forward, backward,
clipping, fused AdamW on bf16 parameters (no fp32 masters). Inference is ``VLAPolicy.predict`` of a
collated batch on the GPU, 4 denoise steps. MFU = 3 x forward FLOP x samples/s / 790e12, once with the
useful FLOP of the published comparison and once with those that torch counts in our forward.
A section that fails or takes too long prints one line, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _device import (
    SectionTimeout,
    captured,
    host_syncs,
    median_and_p99,
    milliseconds,
    profile,
    seconds_per_call,
    synchronize,
    time_limit,
)
from _models import FULL, HEADS, TINY, Size, batch_of, build, instruction, noise_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.batch import Batch
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.testing import make_observation
from vla_heads import LayerwiseFM, MLPRegression
from vla_vlm import Qwen25VL

PEAK_FLOPS = 790e12  # bf16 dense, measured on an H200
USEFUL_FLOP = {"QwenPI": 2.28e12}  # forward FLOP a sample, as the published comparison counts them


@dataclass
class Run:
    """Where and what, and the rows measured so far."""

    size: Size
    device: torch.device
    deadline: float
    train: list[dict[str, Any]] = field(default_factory=list)
    infer: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on a GPU; a CPU that lacks it would only measure its emulation."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def section(self, name: str, limit_s: float, fn: Callable[[], None]) -> None:
        """Run ``fn``; a failure becomes one line and frees its memory."""
        limit_s = min(limit_s, self.deadline - time.perf_counter())
        began = time.perf_counter()
        try:
            if limit_s <= 1:
                raise SectionTimeout("no time left")
            with time_limit(limit_s):
                fn()
        except RuntimeError as error:  # torch.OutOfMemoryError and SectionTimeout are RuntimeErrors
            first = str(error).strip().splitlines() or [""]
            self.errors[name] = f"{type(error).__name__}: {first[0][:200]}"
            print(f"{name}: {self.errors[name]}", flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.seconds[name] = round(time.perf_counter() - began, 2)
        print(f"# {name}: {self.seconds[name]} s", flush=True)


def count(run: Run, framework: str, policy: VLAPolicy, words: str) -> None:
    """Parameters, tokens and forward FLOP a sample (attention as a full square, by the math kernel)."""
    batch = batch_of(policy, 2, words, run.device, targets=True)
    mode = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:
        policy.model(batch)
    parts: dict[str, Any] = {"all": policy.model, "vlm": policy.model.vlm, "head": policy.model.head}
    run.facts[framework] = {
        "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items()},
        "tokens": batch.tokens.input_ids.shape[1],
        "padding_tokens": int((~batch.tokens.attention_mask[0]).sum()),
        "counted_flop": mode.get_total_flops() / 2,
        "useful_flop": USEFUL_FLOP.get(framework) if run.size.base_vlm == "3b" else None,
    }


def trainer_step(policy: VLAPolicy, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Forward, backward, clipping and AdamW, without reading the loss."""
    optimizer.zero_grad(set_to_none=True)
    terms = policy.model(batch)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def train(run: Run, framework: str, policy: VLAPolicy, words: str, rows: int, mode: str) -> None:
    """samples/s, peak memory and MFU of one batch size."""
    cuda = run.device.type == "cuda"
    policy.model.train()
    batch = batch_of(policy, rows, words, run.device, targets=True)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5, fused=cuda)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step = functools.partial(trainer_step, policy, batch, optimizer)
    try:
        seconds = seconds_per_call(step, run.size.train_repeats, 2, run.device)
        row: dict[str, Any] = {
            "framework": framework,
            "mode": mode,
            "batch": rows,
            "samples_per_s": rows / seconds,
            "ms_per_step": 1e3 * seconds,
            "loss_finite": bool(torch.isfinite(step())),
        }
        facts = run.facts.get(framework, {})
        if cuda:
            row["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
            for kind in ("useful", "counted"):
                if facts.get(f"{kind}_flop"):
                    row[f"mfu_{kind}"] = 3 * facts[f"{kind}_flop"] * rows / seconds / PEAK_FLOPS
            if mode == "eager" and rows == run.size.train_B[1]:
                row["host_syncs"] = host_syncs(step)
                row["profile"] = profile(step)
        run.train.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "profile"}), flush=True)
    finally:
        policy.model.zero_grad(set_to_none=True)
        policy.eval()


@torch.inference_mode()
def infer(run: Run, framework: str, policy: VLAPolicy, words: str, rows: int, mode: str) -> None:
    """Median and p99 of ``predict``, eager and replayed as a CUDA graph."""
    batch = batch_of(policy, rows, words, run.device, targets=False)
    noise = noise_of(batch)

    def predict() -> torch.Tensor:
        return policy.model.predict(batch, noise, 4)

    repeats = run.size.infer_repeats if rows < 32 else min(30, run.size.infer_repeats)
    row = _latency(run, framework, mode, rows, milliseconds(predict, repeats, 5, run.device))
    if run.device.type == "cuda":
        if mode == "eager":
            row["host_syncs"] = host_syncs(predict)
            row["profile"] = profile(predict)
        replay = captured(predict)
        _latency(run, framework, f"{mode} + CUDA graph", rows, milliseconds(replay, repeats, 5, run.device))
    if mode == "eager" and rows == 1:
        (spec,) = policy.specs.values()
        seen = [replace(make_observation(spec), instruction=words)]
        spent = milliseconds(lambda: policy.act(seen, [0], 4), min(30, repeats), 3, run.device)
        _latency(run, framework, "act(): raw observation to action chunk", rows, spent)


def _latency(run: Run, framework: str, mode: str, rows: int, spent: list[float]) -> dict[str, Any]:
    median, p99 = median_and_p99(spent)
    row: dict[str, Any] = {
        "framework": framework,
        "mode": mode,
        "batch": rows,
        "median_ms": median,
        "p99_ms": p99,
        "samples_per_s": 1e3 * rows / median,
        "repeats": len(spent),
    }
    run.infer.append(row)
    print(json.dumps(row), flush=True)
    return row


def check(run: Run, what: str, value: float, limit: float) -> None:
    """Record ``value <= limit`` (NaN fails)."""
    passed = bool(value <= limit)
    run.checks.append({"check": what, "value": value, "limit": limit, "passed": passed})


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@torch.inference_mode()
def check_batching(run: Run, framework: str, policy: VLAPolicy, words: str) -> None:
    """Answers are finite, depend on the image, and don't depend on the other rows of a batch."""
    batch = batch_of(policy, 8, words, run.device, targets=False)
    noise = noise_of(batch)
    start = torch.zeros_like(noise) if framework == "QwenOFT" else noise
    together = policy.model.predict(batch, noise, 4) - start
    solo = (
        policy.model.predict(batch_of(policy, 1, words, run.device, targets=False), noise[:1], 4) - start[:1]
    )
    check(run, f"{framework}: non-finite values in a batch of 8", float((~together.isfinite()).sum()), 0)
    # Batch size picks other bf16 kernels, and 36 random layers amplify their rounding; the same code in
    # fp32 at size tiny must agree to 1e-5. A row that leaked into another would be off by about 1.
    limit = 2e-1 if run.dtype == torch.bfloat16 else 1e-5
    check(run, f"{framework}: solo against row 0 of 8, relative error", relative(solo, together[:1]), limit)
    check(run, f"{framework}: all rows equal (1 would mean the input is ignored)",
          float(relative(together[1:2], together[:1]) == 0), 0)  # fmt: skip


@torch.inference_mode()
def check_precision(run: Run) -> None:
    """bf16 against fp32 where the head reads (and so the backbone runs) two decoder layers only."""
    policy = build(run.size, run.device, "QwenPI", torch.float32, n_blocks=2, vl_layer_selection="first")
    words = instruction(policy, run.size.text_tokens)
    batch = batch_of(policy, 4, words, run.device, targets=False)
    noise = noise_of(batch)
    exact = policy.model.predict(batch, noise, 4) - noise
    rounded = policy.to(dtype=torch.bfloat16).model.predict(batch, noise, 4) - noise
    check(run, "bf16 against fp32, 2 decoder layers and head blocks: relative error of the displacement",
          relative(rounded, exact), 5e-2)  # fmt: skip


def compile_blocks(policy: VLAPolicy) -> None:
    """``torch.compile`` every transformer block in place; equal blocks share their code."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    model: Any = policy.model.get_submodule("vlm.model")
    blocks = [*model.visual.blocks, *model.language_model.layers]
    if isinstance(policy.model.head, LayerwiseFM):
        blocks += list(policy.model.head.blocks)
    for block in blocks:
        block.compile(dynamic=False)


def measure(run: Run, framework: str, compiled: bool) -> None:
    """Every section of one framework, eager or compiled."""
    size, held, mode = run.size, {}, "compiled" if compiled else "eager"

    def make() -> None:
        held["policy"] = build(run.size, run.device, framework, run.dtype)
        synchronize(run.device)

    run.section(f"{framework} {mode} build", 60, make)
    if "policy" not in held:
        return
    policy = held.pop("policy")
    words = instruction(policy, size.text_tokens)
    if compiled:
        compile_blocks(policy)
    else:
        run.section(f"{framework} count", 20, lambda: count(run, framework, policy, words))
        run.section(f"{framework} batching", 20, lambda: check_batching(run, framework, policy, words))
    for rows in size.infer_B:
        name = f"{framework} {mode} inference, batch {rows}"
        run.section(name, 45, functools.partial(infer, run, framework, policy, words, rows, mode))
    for rows in size.train_B[-1:] if compiled else size.train_B:
        name = f"{framework} {mode} training, batch {rows}"
        run.section(name, 75, functools.partial(train, run, framework, policy, words, rows, mode))


def table(columns: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """Markdown; ``columns`` maps a key to ``title|format``, and absent values print as a dash."""
    titles, formats = zip(*(c.rsplit("|", 1) for c in columns.values()), strict=True)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [format(row[k], f) if row.get(k) is not None else "-" for k, f in zip(columns, formats)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(run: Run, what: str) -> str:
    """The markdown of everything measured."""
    for row in [*run.train, *run.infer]:
        if "host_syncs" in row:
            row["syncs"] = sum(row["host_syncs"].values())
            row["launches"] = row["profile"]["launches"] if "profile" in row else None
            row["gpu_ms"] = row["profile"]["gpu_ms"] if "profile" in row else None
    head = {"framework": "framework|", "mode": "mode|", "batch": "batch|"}
    parts = [
        what,
        *(f"{k}: {json.dumps(v)}" for k, v in run.facts.items()),
        table(
            {**head, "samples_per_s": "samples/s|.1f", "ms_per_step": "ms a step|.0f",
             "mfu_useful": "MFU, published FLOP|.1%", "mfu_counted": "MFU, counted FLOP|.1%",
             "peak_GiB": "peak GiB|.1f", "syncs": "host syncs|", "launches": "launches|",
             "gpu_ms": "GPU busy ms|.0f"},
            run.train,
        ),
        table(
            {**head, "median_ms": "median ms|.1f", "p99_ms": "p99 ms|.1f", "samples_per_s": "samples/s|.1f",
             "syncs": "host syncs|", "launches": "launches|", "gpu_ms": "GPU busy ms|.1f"},
            run.infer,
        ),
        table({"check": "check|", "value": "value|.1e", "limit": "limit|.0e", "passed": "passed|"},
              run.checks),
    ]  # fmt: skip
    if run.errors:
        parts.append("not measured:\n" + "\n".join(f"- {k}: {v}" for k, v in run.errors.items()))
    places = {p: n for row in [*run.train, *run.infer] for p, n in row.get("host_syncs", {}).items()}
    if places:
        parts.append("host syncs at:\n" + "\n".join(f"- {p}: {n}" for p, n in places.items()))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="size tiny on the CPU: checks the path")
    parser.add_argument("--frameworks", nargs="+", default=["QwenPI", "QwenOFT"], choices=list(HEADS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--limit", type=float, default=285.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device here; --tiny runs the same path on the CPU")
    began = time.perf_counter()
    if args.tiny:
        torch.set_num_threads(1)
    device = torch.device("cpu" if args.tiny else "cuda")
    run = Run(TINY if args.tiny else FULL, device, began + args.limit)
    # Registered here, so that PYTHONPATH is enough and nothing needs to be installed.
    override("vla.vlms", "qwen2_5_vl", Qwen25VL)
    override("vla.heads", "layerwise_fm", LayerwiseFM)
    override("vla.heads", "mlp_regression", MLPRegression)
    run.section("precision", 40, lambda: check_precision(run))
    # Compilation last: it takes most of the time, and nothing else should wait for it.
    for compiled in (False,) if args.tiny or args.no_compile else (False, True):
        for framework in args.frameworks:
            measure(run, framework, compiled)
    name = "CPU, 1 thread" if args.tiny else torch.cuda.get_device_name()
    what = (
        f"{name}, torch {torch.__version__}, {str(run.dtype).removeprefix('torch.')}, "
        f"base_vlm {run.size.base_vlm}, 2 views of {run.size.image} x {run.size.image}, "
        f"{time.perf_counter() - began:.0f} s in all"
    )
    print("\n" + report(run, what))
    if args.out:
        found = {k: getattr(run, k) for k in ("train", "infer", "checks", "errors", "facts", "seconds")}
        args.out.write_text(json.dumps({"what": what, **found}, indent=1))
    if not all(row["passed"] for row in run.checks):
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
