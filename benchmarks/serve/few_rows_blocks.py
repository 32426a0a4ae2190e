"""Blocks of one robot's chunk: what they take compiled as until now, and by the kernels for few rows.

    python benchmarks/serve/few_rows_blocks.py --out blocks.json    one GPU, about 40 seconds

The 36 blocks of QwenPI's head (49 rows, 190 tokens of context) and the 18 layers of PI0's expert (51 rows, a
prefix of 560), with random weights, one after the other in a graph, as in one denoise step. ``kernels``:
microseconds of a block by kernel, and how many a block starts (torch's profiler). Errors are those of the
last block's output, against float32.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _replays import captured, microseconds
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from vla_core.graphs import compile_blocks, repeated_blocks
from vla_core.interfaces import KVDims
from vla_core.packing import pack
from vla_heads.layerwise_fm.block import DiTBlock
from vla_heads.pi0.expert import Expert, rotation


class Head(nn.Module):
    """QwenPI's blocks over one context."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DiTBlock(2048, 32, 2048, False, 0.0) for _ in range(36))

    def forward(self, x: Tensor, context: Any, mask: Tensor, modulation: Tensor) -> Tensor:
        """As a denoise step goes through them."""
        for block, keys_values in zip(self.blocks, context, strict=True):
            x = block(x, keys_values, mask, modulation, None)
        return x


def qwen_pi() -> tuple[nn.Module, tuple[Any, ...]]:
    """The head, and what it is given, in float32."""
    head = Head()
    kept = [torch.randn(1, 190, 2, 32, 64).permute(2, 0, 3, 1, 4).unbind(0) for _ in head.blocks]
    mask = (torch.arange(190) < 180).view(1, 1, 1, -1)
    return head, (torch.randn(1, 1, 49, 2048), kept, mask, 0.1 * torch.randn(1, 1, 4096))


def pi0() -> tuple[nn.Module, tuple[Any, ...]]:
    """The expert, likewise."""
    expert = Expert(18, 1024, 4096, KVDims(8, 1, 256, 10_000.0), adaptive=False)
    prefix = [tuple(torch.randn(1, 560, 1, 256).transpose(1, 2) for _ in range(2)) for _ in expert.layers]
    mask = torch.ones(1, 1, 51, 611, dtype=torch.bool)
    by = rotation(torch.arange(560, 611)[None], 256, 10_000.0)
    return expert, (torch.randn(1, 51, 1024), prefix, mask, by, None)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {"QwenPI": qwen_pi, "PI0": pi0}


def narrowed(value: Any) -> Any:
    """Numbers as bfloat16."""
    if isinstance(value, (tuple, list)):
        return [narrowed(part) for part in value]
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def measured(run: Callable[[], Tensor], count: int, exact: Tensor) -> dict[str, Any]:
    """``run`` as a graph; microseconds are of one of ``count`` blocks."""
    graph, out = captured(run, warm=2)
    first = out.clone()
    report = {
        "us": round(microseconds(graph, parts=count, times=20), 1),
        "max_error": float((out - exact).abs().max()),
        "mean_error": float((out - exact).abs().mean()),
        "stable": torch.equal(first, out),
    }
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        graph.replay()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.name[:70]][0] += event.device_time_total / count
            kernels[event.name[:70]][1] += 1 / count
    ordered = sorted(kernels.items(), key=lambda kernel: -kernel[1][0])
    return report | {"kernels": {name: [round(x, 2) for x in found] for name, found in ordered}}


@torch.inference_mode()
def compared(name: str) -> dict[str, Any]:
    """A head packed and compiled, with kernels, and compiled with them; errors against itself in float32."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        part, given = CASES[name]()
    part.eval()
    count = len(repeated_blocks(part))
    for parameter in part.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    exact = part(*given)
    part = part.bfloat16()
    # Rotary positions stay float32, as in the head.
    given = tuple(value if name == "PI0" and at == 3 else narrowed(value) for at, value in enumerate(given))
    before = copy.deepcopy(part)
    with patch("vla_heads.few_rows.when.capable", return_value=False):
        pack(before)
    compile_blocks(before)
    found = {"compiled": measured(lambda: before(*given), count, exact)}
    pack(part)
    found["kernels"] = measured(lambda: part(*given), count, exact)
    compile_blocks(part)
    return found | {"kernels, compiled": measured(lambda: part(*given), count, exact)}


def main() -> None:
    """Each case, printed as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for name in args.cases:
        report[name] = compared(name)
        print(name, json.dumps(report[name], indent=1), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
