"""Every preset at full size with random weights on one GPU: a training step and a prediction in bf16.

    python benchmarks/frameworks_gpu.py --out frameworks_gpu.json                   all presets as they are
    python benchmarks/frameworks_gpu.py --out frameworks_gpu.json --vlm qwen3_vl:4b QwenPI QwenOFT
    python benchmarks/frameworks_gpu.py --out tiny.json --size tiny                 the same path on a CPU

Two views, horizon and prompt of the preset. A step is forward, backward, clipping and fused AdamW on bf16
parameters (no fp32 masters); a batch that does not fit is halved until one does. A prediction is
``VLAPolicy.predict`` at batch 1, eager and as one CUDA graph.
A row that is in the file is not measured again; one that fails is written with its reason, and tried again.
The packages must be installed: parts are found by entry point.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _device import captured, median_and_p99, milliseconds, seconds_per_call, time_limit
from vla_core.errors import UserError
from vla_core.policy import VLAPolicy
from vla_train.presets import list_presets
from vla_train.testing import trace as smoke
from vla_train.testing.sizes import Size, framework_tree

TRAIN_REPEATS, INFER_REPEATS, WARMUP = 5, 20, 2


def build(name: str, size: Size, vlm: str | None, device: torch.device) -> VLAPolicy:
    """The preset on the device, random; what trains is bf16 on a GPU."""
    words = []
    if vlm is not None:
        part, _, base = vlm.partition(":")
        words = [f"vlm.name={part}", f"vlm.base_vlm={base}"]
    if device.type == "cuda":
        words.append("vlm.dtype=bfloat16")
    torch.manual_seed(0)
    policy = smoke.build(framework_tree(name, size, words), size, str(device))
    if device.type == "cuda":
        # Not the whole policy: a backbone keeps some of its tables in fp32.
        for module in (policy.model.head, policy.model.fusion, policy.model.geometry):
            if module is not None:
                module.to(torch.bfloat16)
        wide = sum(p.numel() for p in policy.model.parameters() if p.dtype != torch.bfloat16)
        if wide > 1e-3 * sum(p.numel() for p in policy.model.parameters()):
            raise RuntimeError(f"{wide / 1e6:.0f} M parameters are not in bf16")
    return policy


def predict(policy: VLAPolicy, device: torch.device, out: dict[str, Any]) -> None:
    """A prediction at batch 1."""
    cuda = device.type == "cuda"
    policy.eval()
    observed = smoke.inference_batch(policy, 1).to(device)
    noise = smoke.noise_for(policy, 1).to(device)
    with torch.inference_mode():
        answer = policy.model.predict(observed, noise)
        if not bool(answer.isfinite().all()):
            raise RuntimeError("the predicted chunk is not finite")
        times = milliseconds(lambda: policy.model.predict(observed, noise), INFER_REPEATS, WARMUP, device)
        out["chunk_ms"] = median_and_p99(times)[0]
        speaks = policy.model.prompt.answer_ids is not None  # reads every word before the next: no graph
        if cuda and not speaks:
            replay = captured(lambda: policy.model.predict(observed, noise))
            out["chunk_graph_ms"] = median_and_p99(milliseconds(replay, INFER_REPEATS, WARMUP, device))[0]
            del replay


def train(policy: VLAPolicy, rows: int, device: torch.device, out: dict[str, Any]) -> None:
    """A training step at batch ``rows``."""
    cuda = device.type == "cuda"
    policy.model.train()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = smoke.training_batch(policy, rows).to(device)
    out["prompt_tokens"] = int(batch.tokens.input_ids.shape[1])
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=cuda)
    seen: list[torch.Tensor] = []

    def step() -> None:
        loss = torch.stack([term.float() for term in policy.model(batch).values()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen[:] = [loss.detach()]

    seconds = seconds_per_call(step, TRAIN_REPEATS, WARMUP, device)
    if not bool(seen[0].isfinite()):
        raise RuntimeError("the loss is not finite")
    out |= {"batch": rows, "samples_per_s": rows / seconds, "loss": float(seen[0])}
    if cuda:
        out["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30


def measure(policy: VLAPolicy, rows: int, device: torch.device, out: dict[str, Any]) -> None:
    """Fills ``out``, so that what was measured before an error stays."""
    out["parameters"], out["trainable"] = smoke.count_parameters(policy.model)
    predict(policy, device, out)
    while True:
        try:
            train(policy, rows, device, out)
            return
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2  # outside of the handler, whose traceback keeps the failed step's tensors
        policy.model.zero_grad(set_to_none=True)
        gc.collect()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row; a dash for what is not there."""

    def cell(row: dict[str, Any], key: str, digits: int) -> str:
        return f"{row[key]:.{digits}f}" if key in row else "-"

    lines = [
        "| framework | backbone | parameters, B | batch | samples/s | peak GiB | chunk ms | as graph, ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        billions = f"{row['parameters'] / 1e9:.2f}" if "parameters" in row else "-"
        cells = [row["framework"], row["vlm"], billions, str(row.get("batch", "-"))]
        cells += [cell(row, "samples_per_s", 1), cell(row, "peak_GiB", 1)]
        cells += [cell(row, "chunk_ms", 1), cell(row, "chunk_graph_ms", 1)]
        lines.append("| " + " | ".join(cells) + " |")
    failed = [f"- {row['framework']} with {row['vlm']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])]) + "\n"


def save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON, and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(rows))


def main() -> None:
    """Measure the presets that have no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="presets (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vlm", help="another backbone, PART:SIZE, e.g. qwen3_vl:4b")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit-s", type=float, default=90.0, help="seconds a preset may take")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds for everything")
    args = parser.parse_args()
    device = torch.device("cuda" if args.size == "full" else "cpu")
    deadline = time.monotonic() + args.budget_s
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in args.names or list_presets():
        key = {"framework": name, "vlm": args.vlm or "as in the preset"}
        if any(key.items() <= row.items() and "error" not in row for row in rows):
            continue
        rows = [row for row in rows if not key.items() <= row.items()]
        row: dict[str, Any] = dict(key)
        left = min(args.limit_s, deadline - time.monotonic())
        if left < 5:
            print(f"{name}: no time left", flush=True)
            continue
        began = time.monotonic()
        try:
            with time_limit(left):
                measure(build(name, args.size, args.vlm, device), args.batch, device, row)
        except (RuntimeError, UserError) as error:  # out of memory and out of time are RuntimeErrors
            row["error"] = (str(error).splitlines() or [type(error).__name__])[0]
        gc.collect()  # the policy is part of cycles
        row["seconds"] = time.monotonic() - began
        if device.type == "cuda":
            row["device"] = torch.cuda.get_device_name()
            torch.cuda.empty_cache()
        rows.append(row)
        save(args.out, rows)
        print(json.dumps(row), flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
