"""Products of few rows: what compiled blocks ran until now against kernels that stream the weight.

    python benchmarks/serve/few_rows.py --out few_rows.json      one GPU, about 2 minutes
    python benchmarks/serve/few_rows.py --cases down --rows 64   one shape

The linear layers of QwenPI's head (49 rows) and of PI0's expert (51), each with what is done to its result.
A graph goes through so many weights that the second-level cache holds none of them when its turn comes again.
``today`` is the layer under ``torch.compile``, as in compiled blocks; ``best`` and ``tried`` are plans, and
the last lines of what is printed the table ``PLANS`` of ``vla_heads.few_rows.plans`` made of the best. Errors
are the largest against float32; ``stable``: all replays of a graph gave the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from _replays import captured, microseconds
from torch import Tensor
from torch.nn import functional as F
from vla_heads.few_rows.layers import counters_of
from vla_heads.few_rows.plans import Plan

ROTATED = 256 << 20
"""Bytes of weights in one graph; the second-level cache has 50 MB."""


@dataclass(frozen=True)
class Case:
    """A linear layer and its epilogue; ``paired``: two of ``outputs`` each, one gates the other."""

    name: str
    rows: int
    outputs: int
    inputs: int
    bias: bool = True
    gelu: bool = False
    paired: bool = False
    residual: bool = False

    @property
    def bytes(self) -> int:
        return 2 * self.inputs * self.outputs * (2 if self.paired else 1)


CASES = (
    Case("out", 49, 2048, 2048, residual=True),
    Case("qkv", 49, 6144, 2048),
    Case("up", 49, 8192, 2048, gelu=True),
    Case("down", 49, 2048, 8192, residual=True),
    Case("pi0_qkv", 51, 2560, 1024, bias=False),
    Case("pi0_out", 51, 1024, 2048, bias=False, residual=True),
    Case("pi0_gate_up", 51, 4096, 1024, bias=False, gelu=True, paired=True),
    Case("pi0_down", 51, 1024, 4096, bias=False, residual=True),
)
NARROW = (
    Case("groot_qkv", 49, 2304, 768),
    Case("groot_out", 49, 768, 768, residual=True),
    Case("groot_up", 49, 3072, 768, gelu=True),
    Case("groot_down", 49, 768, 3072, residual=True),
)
"""Of QwenGR00T's head, with --cases alone."""


def layer(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """What the blocks compute, in torch's words."""
    y = F.linear(x, weight, bias)
    if case.paired:
        gate, up = y.chunk(2, dim=-1)
        y = F.gelu(gate, approximate="tanh") * up
    elif case.gelu:
        y = F.gelu(y, approximate="tanh")
    return y if residual is None else residual + y


def plans(case: Case) -> Iterator[Plan]:
    """A small grid: 120 to 600 programs (48 for small weights), of which one or more fit a multiprocessor."""
    for columns, (depth, stages), split in itertools.product(
        (32, 64, 128), ((64, 4), (64, 8), (128, 4), (128, 6)), (1, 2, 3, 4, 6, 8, 16)
    ):
        wide = columns * (2 if case.paired else 1)
        if case.outputs % columns or wide > 256 or case.inputs // depth < 2 * split:
            continue
        programs = case.outputs // columns * split
        shared = 2 * depth * stages * (64 + wide)
        least = 120 if case.bytes > 4 << 20 else 48
        if least <= programs <= 600 and shared <= 200_000 and case.inputs // depth // split >= stages // 2:
            yield Plan(columns, depth, split, stages, 8 if wide >= 128 else 4)


def tensors(case: Case, count: int) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None]:
    """Input, weights, bias and residual, the same in each process."""
    draw = torch.Generator("cuda").manual_seed(0)
    random = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=draw)  # noqa: E731
    x, twice = random(case.rows, case.inputs), case.outputs * (2 if case.paired else 1)
    bias = random(twice) if case.bias else None
    residual = random(case.rows, case.outputs) if case.residual else None
    weights = [random(twice, case.inputs) * case.inputs**-0.5 for _ in range(count)]
    return x, weights, bias, residual


def streamed(case: Case, plan: Plan) -> Callable[..., Tensor]:
    """The kernels' product with a plan, called as :func:`layer` is."""
    from vla_heads.few_rows.product_kernel import product

    counters = counters_of(plan, case.outputs, torch.device("cuda"))  # of all weights: one after the other

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return product(x, weight, bias, residual, None, case.gelu, case.paired, plan, counters)

    return run


def prepare(case: Case, plan: Plan) -> float | str:
    """Compile, into Triton's cache on disk; the largest error, or why there is no such kernel."""
    from triton.runtime.errors import OutOfResources

    x, (weight,), bias, residual = tensors(case, 1)
    wide = [None if t is None else t.float() for t in (x, weight, bias, residual)]
    with torch.no_grad():
        try:
            got = streamed(case, plan)(x, weight, bias, residual)
        except (OutOfResources, RuntimeError) as error:
            return str(error).splitlines()[0]
        return float((got.float() - layer(case, *wide)).abs().max())


@torch.no_grad()
def timed(run: Callable[..., Tensor], case: Case) -> tuple[float, bool]:
    """Microseconds of one product in a graph of many weights; and whether replays gave the same bits."""
    count = max(8, -(-ROTATED // case.bytes))
    x, weights, bias, residual = tensors(case, count)
    graph, outs = captured(lambda: [run(x, weight, bias, residual) for weight in weights], warm=1)
    first = [out.clone() for out in outs]
    us = microseconds(graph, parts=count, times=12)
    return us, all(bool((a == b).all()) for a, b in zip(first, outs, strict=True))


def measured(case: Case, run: Callable[..., Tensor]) -> dict[str, Any]:
    """Time, speed at which weights were read, and whether results stay."""
    us, stable = timed(run, case)
    return {"us": round(us, 2), "GB_s": round(case.bytes / us / 1000), "stable": stable}


@torch.no_grad()
def compiled(case: Case) -> tuple[Callable[..., Tensor], float]:
    """The layer as blocks are compiled, and its largest error."""
    run = torch.compile(lambda *given: layer(case, *given), dynamic=False)
    x, (weight,), bias, residual = tensors(case, 1)
    wide = [None if t is None else t.float() for t in (x, weight, bias, residual)]
    return run, float((run(x, weight, bias, residual).float() - layer(case, *wide)).abs().max())


def best_of(case: Case, errors: dict[Plan, float | str]) -> dict[str, Any]:
    """Every plan that compiled, the best first; that one also without reading ahead, if that is better."""
    tried = []
    for plan, error in errors.items():
        found = {"plan": asdict(plan), "max_error": error}
        tried.append(found if isinstance(error, str) else found | measured(case, streamed(case, plan)))
    tried.sort(key=lambda found: found.get("us", float("inf")))
    best = tried[0]
    if "us" in best:
        alone = replace(Plan(**best["plan"]), ahead=False)
        found = {"plan": asdict(alone), "max_error": best["max_error"]}
        found |= measured(case, streamed(case, alone))
        tried = sorted([*tried, found], key=lambda found: found.get("us", float("inf")))
        return {"best": tried[0], "other_ahead": found if tried[0] is best else best, "tried": tried[1:]}
    return {"best": best, "other_ahead": None, "tried": tried[1:]}


def main() -> None:
    """Compile in parallel, then measure one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda",))
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--rows", type=int, help="of every case, instead of its own")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases = [case for case in (*CASES, *NARROW) if case.name in args.cases]
    cases = cases if args.rows is None else [replace(case, rows=args.rows) for case in cases]
    torch._dynamo.config.recompile_limit = 64
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cases": {}}
    work = [(case, plan) for case in cases for plan in plans(case)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool:
        waiting = pool.map(prepare, *zip(*work, strict=True), chunksize=4)
        before = {case: compiled(case) for case in cases}
        found = dict(zip(work, waiting, strict=True))
    for case, (run, error) in before.items():  # alone on the GPU from here on
        today = measured(case, run) | {"max_error": error}
        errors = {plan: error for (of, plan), error in found.items() if of == case}
        report["cases"][case.name] = asdict(case) | {"today": today} | best_of(case, errors)
        print(case.name, "today", today, *report["cases"][case.name]["best"].items(), flush=True)
        print("  otherwise ahead or not", report["cases"][case.name]["other_ahead"], flush=True)
    for case in cases:
        plan = Plan(**report["cases"][case.name]["best"]["plan"])
        print(f"    ({case.outputs}, {case.inputs}, {case.paired}): {plan},")
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
