"""LayerwiseFM: what sharing the context's keys and values saves.

    python benchmarks/head.py                  CPU, tiny shape, 1 thread
    python benchmarks/head.py --device cuda    2048 x 36 layers, bf16

"shared" is the head as it is: the context is projected once per observation. "per use" projects it for
every repeat (training) or denoise step (sampling), as heads without a prepare step do. Both are timed in
turn, and the median of ``--rounds`` is printed as a markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput
from vla_heads import LayerwiseFM


@dataclass(frozen=True)
class Shape:
    """One case: W width, N layers, S context tokens, future tokens, T steps, A action dims."""

    width: int
    layers: int
    context: int
    future: int
    horizon: int = 16
    action_dim: int = 7


TINY = Shape(width=128, layers=4, context=100, future=4)
FULL = Shape(width=2048, layers=36, context=562, future=32)


def build(shape: Shape, concat: bool, repeats: int, device: torch.device, dtype: torch.dtype) -> LayerwiseFM:
    """The head with random weights."""
    config = LayerwiseFM.Config(
        n_future_tokens=shape.future, use_concat_cross_context=concat, repeated_diffusion_steps=repeats
    )
    dims = HeadDims(shape.width, shape.layers, shape.action_dim, shape.horizon)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with device:
        head = LayerwiseFM.build(config, dims)
    torch.set_default_dtype(previous)
    return head


def observe(head: LayerwiseFM, shape: Shape, rows: int, grad: bool) -> HeadInputs:
    """A random observation of ``rows`` rows."""
    like = head.action_position
    hidden = {
        i: torch.randn(rows, shape.context, shape.width, device=like.device, dtype=like.dtype)
        for i in head.layers
    }
    for tensor in hidden.values():
        tensor.requires_grad_(grad)  # as in training, where the backbone learns too
    mask = torch.ones(rows, shape.context, dtype=torch.bool, device=like.device)
    return HeadInputs(VLMOutput(hidden, mask, {}))


def repeat_rows(inputs: HeadInputs, repeats: int) -> HeadInputs:
    """Every row ``repeats`` times, adjacent."""
    hidden = {i: x.repeat_interleave(repeats, 0) for i, x in inputs.vlm.hidden.items()}
    mask = inputs.vlm.mask.repeat_interleave(repeats, 0)
    return HeadInputs(replace(inputs.vlm, hidden=hidden, mask=mask))


def training(head: LayerwiseFM, shape: Shape, rows: int, repeats: int) -> dict[str, Callable[[], None]]:
    """Forward and backward over ``rows * repeats`` noisy chunks."""
    inputs, device = observe(head, shape, rows, grad=True), head.action_position.device
    actions = torch.randn(rows, shape.horizon, shape.action_dim, device=device)
    mask = torch.ones_like(actions, dtype=torch.bool)
    noise = torch.randn(rows, repeats, *actions.shape[1:], device=device)
    times = torch.rand(rows, repeats, device=device)

    def shared() -> None:
        head.zero_grad(set_to_none=True)
        head(inputs, actions, mask, noise=noise, time=times)["action_loss"].backward()

    def per_use() -> None:
        head.zero_grad(set_to_none=True)
        wide = repeat_rows(inputs, repeats)
        targets, valid = (x.repeat_interleave(repeats, 0) for x in (actions, mask))
        flat = noise.flatten(0, 1)[:, None]
        head(wide, targets, valid, noise=flat, time=times.flatten()[:, None])["action_loss"].backward()

    return {"shared": shared, "per use": per_use}


def sampling(head: LayerwiseFM, shape: Shape, rows: int, steps: int) -> dict[str, Callable[[], None]]:
    """``rows`` answers of ``steps`` Euler steps."""
    inputs, device = observe(head, shape, rows, grad=False), head.action_position.device
    noise = torch.randn(rows, shape.horizon, shape.action_dim, device=device)
    plan = head.plan(steps)

    def shared() -> None:
        head.sample(inputs, noise, plan=plan)

    def per_use() -> None:
        x: Tensor = noise
        for condition in head.plan(steps):
            x = x + head.step(head.prepare(inputs), x, condition) / steps

    ways = {"shared": shared, "per use": per_use}
    if device.type == "cuda":
        ways["shared, CUDA graph"] = captured(shared)
    return ways


def captured(fn: Callable[[], None]) -> Callable[[], None]:
    """Replay of ``fn`` as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            fn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def medians(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each way, taken in turn so that a busy machine slows all of them alike."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 2):
        for name, fn in ways.items():
            start = time.perf_counter()
            fn()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 2:
                spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    """Time every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=32, help="observations of a training step")
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; run with --device cpu")
    torch.manual_seed(0)
    device = torch.device(args.device)
    shape, dtype = (FULL, torch.bfloat16) if args.device == "cuda" else (TINY, torch.float32)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} thread(s)"
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    print(f"{where}, torch {torch.__version__}, {dtype}: {shape}\n")
    print("| attention | what | rows | ms shared | ms per use | ms shared, CUDA graph |")
    print("|---|---|---|---|---|---|")
    for concat in (False, True):
        name = "concat" if concat else "self + cross"
        head = build(shape, concat, 1, device, dtype)
        for repeats in args.repeats:
            found = medians(training(head, shape, args.rows, repeats), args.rounds, device)
            row(name, f"forward + backward, R = {repeats}", args.rows, found)
        head.zero_grad(set_to_none=True)
        with torch.inference_mode():
            for steps in args.steps:
                for rows in (1, 8):
                    found = medians(sampling(head, shape, rows, steps), args.rounds, device)
                    row(name, f"sample, {steps} steps", rows, found)


def row(attention: str, what: str, rows: int, found: dict[str, float]) -> None:
    """Print one line of the table."""
    graph = found.get("shared, CUDA graph")
    last = "-" if graph is None else f"{graph:.1f}"
    print(
        f"| {attention} | {what} | {rows} | {found['shared']:.1f} | {found['per use']:.1f} | {last} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
