"""One training step and one chunk with each attention kernel, on the same weights: error and time.

    python benchmarks/attention.py --out attention.json     one GPU with the package flash_attn: 2 minutes
    python benchmarks/attention.py --tiny                   sdpa and eager at size tiny on a CPU

Qwen2.5-VL-3B shapes with random weights in bf16 and a head (QwenGR00T, QwenPI), two views of 224 x 224. A
step is forward and backward of a batch; its time is the median of some. Errors are relative,
``||a - b|| / ||b||``, of the loss, of the gradients that reach the vision tower's and the language model's
first block, and of a chunk's displacement from its noise, each against sdpa; the row of eager attention says
how far two kernels that are both right are apart in bf16.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import torch
from _device import median_and_p99, milliseconds
from _models import FULL, TINY, batch_of, build, instruction, noise_of
from torch import Tensor
from vla_core.policy import VLAPolicy

FRAMEWORKS = ("QwenGR00T", "QwenPI")


def step(policy: VLAPolicy, batch: Any, seed: int) -> Tensor:
    """Loss of one forward and backward pass; the same noise and times for the same seed."""
    policy.model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = torch.stack(list(policy.model(batch).values())).sum()
    loss.backward()
    return loss.detach()


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def run(framework: str, kernel: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[Tensor]]:
    """Times of one kernel, and what is compared: loss, two gradients, displacement."""
    size, device = (TINY, torch.device("cpu")) if args.tiny else (FULL, torch.device("cuda"))
    dtype = torch.float32 if args.tiny else torch.bfloat16
    policy = build(size, device, framework, dtype, vlm_options={"attn_implementation": kernel})
    policy.model.head.eval()  # dropout would draw other numbers
    words = instruction(policy, args.text_tokens)
    batch = batch_of(policy, args.batch, words, device, targets=True)
    train = functools.partial(step, policy, batch, 0)
    loss = train()
    blocks = [
        policy.model.get_submodule(f"vlm.model.{name}")
        for name in ("visual.blocks.0", "language_model.layers.0")
    ]
    grads = [
        torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None]) for block in blocks
    ]
    row = {"framework": framework, "kernel": kernel, "batch": args.batch, "loss": float(loss)}
    row["step_ms"] = median_and_p99(milliseconds(train, args.repeats, 2, device))[0]
    policy.model.zero_grad(set_to_none=True)
    seen = batch_of(policy, 1, words, device, targets=False)
    noise = noise_of(seen)
    with torch.inference_mode():
        chunk = functools.partial(policy.model.predict, seen, noise, 4)
        moved = chunk() - noise
        row["chunk_ms"] = median_and_p99(milliseconds(chunk, args.repeats, 2, device))[0]
    return row, [x.detach().cpu() for x in (loss, *grads, moved)]


def main() -> None:
    """Run every kernel, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="size tiny on the CPU: checks the path")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--text-tokens", type=int, default=60, help="of the prompt's 84: the rest is padding")
    parser.add_argument("--kernels", nargs="+", help="default: sdpa, eager and, on a GPU, flash_attention_2")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device here; --tiny runs the same path on the CPU")
    kernels = args.kernels or ["sdpa", "eager", *([] if args.tiny else ["flash_attention_2"])]
    rows = []
    for framework in FRAMEWORKS:
        exact: list[Tensor] = []
        for kernel in kernels:
            row, found = run(framework, kernel, args)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            exact = exact or found
            names = ("loss", "vision_gradient", "language_gradient", "chunk")
            row |= {f"{n}_error": relative(a, b) for n, a, b in zip(names, found, exact, strict=True)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if args.out:
                device = "CPU" if args.tiny else torch.cuda.get_device_name()
                args.out.write_text(
                    json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=1)
                )


if __name__ == "__main__":
    main()
