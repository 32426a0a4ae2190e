"""The kernels for few rows, compiled for a Hopper GPU where there is none: they fit into it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vla_heads.few_rows.plans import MOST_ROWS, PLANS

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from vla_heads.few_rows import attention_kernel, norm_kernel, prefixed_kernel, product_kernel  # noqa: E402

SHARED = 227 * 1024
"""Bytes of a multiprocessor for one program."""


def compiled(
    kernel: Any,
    pointers: str,
    numbers: dict[str, str],
    constants: dict[str, Any],
    strides: str = "",
    **options: int,
):
    """``pointers`` are to bfloat16 unless ``numbers`` says otherwise; they and ``strides`` are aligned."""
    names = [parameter.name for parameter in kernel.params]
    kinds = dict.fromkeys(pointers.split(), "*bf16") | numbers | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (pointers + strides).split()}
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in names}, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"launch_pdl": True, **options})


def stack_of(found: Any, directory: Path) -> int:
    """Bytes of a thread that found no place in registers."""
    binary = directory / "kernel.cubin"
    binary.write_bytes(found.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", said)
    return int(stack)


@pytest.mark.parametrize("shape", PLANS)
def test_products(shape: tuple[int, int, bool], tmp_path: Path) -> None:
    (outputs, inputs, paired), plan = shape, PLANS[shape]
    kind = "*fp32" if plan.split > 1 else "*bf16"
    constants = {
        "N": outputs, "K": inputs, "BIAS": True, "GELU": True, "PAIRED": paired, "GATE": True,
        "RESIDUAL": True, "ROWS": MOST_ROWS, "COLUMNS": plan.columns, "DEPTH": plan.depth,
        "SPLIT": plan.split, "LINE": product_kernel.LINE, "AHEAD": True,
    }  # fmt: skip
    found = compiled(
        product_kernel._product,
        "x weight bias residual gate out partial counters",
        {"partial": kind, "counters": "*i32" if plan.split > 1 else kind},
        constants,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    assert found.metadata.shared <= SHARED
    text = found.asm["ptx"]
    assert "wgmma" in text
    assert stack_of(found, tmp_path) == 0
    # Nothing of the kernel in front is read before it is done.
    assert text.index("prefetch.global.L2") < text.index("griddepcontrol.wait") < text.index("cp.async")


@pytest.mark.parametrize("width", [64, 128])
def test_attention(width: int, tmp_path: Path) -> None:
    found = compiled(
        attention_kernel._attend,
        "q k v mask out",
        {"mask": "*i1", "scale": "fp32"},
        {"HEADS": 32, "WIDTH": width, "QUERIES": 64, "KEYS": 128, "MASKED": True, "AHEAD": True},
        " q_row q_head q_token k_row k_head k_token v_row v_head v_token",
        num_warps=4,
        num_stages=2,
    )
    assert found.metadata.shared <= SHARED
    assert stack_of(found, tmp_path) == 0


def test_norms() -> None:
    constants = {
        "WIDTH": 2048, "BLOCK": 2048, "CENTRED": True, "OFFSET": 1.0, "SCALE": True, "SHIFT": True,
        "AHEAD": True,
    }  # fmt: skip
    found = compiled(
        norm_kernel._norm, "x scale shift out", {"eps": "fp32"}, constants, "", num_warps=8, num_stages=1
    )
    text = found.asm["ptx"]
    assert text.index("griddepcontrol.wait") < text.index("ld.global")


def test_attention_behind_a_prefix(tmp_path: Path) -> None:
    strides = "".join(
        f" {name}_{of}" for name in ("q", "k", "v", "prefix_k", "prefix_v") for of in ("row", "head", "token")
    )
    found = compiled(
        prefixed_kernel._part,
        "q k v prefix_k prefix_v mask cosine sine found best total",
        dict.fromkeys(("cosine", "sine", "found", "best", "total"), "*fp32")
        | {"mask": "*i1", "scale": "fp32"},
        {"SHARED": 1, "GROUP": 8, "HALF": 128, "SOME": 64, "QUERIES": 64, "KEYS": 64, "AHEAD": True},
        strides + " turn_row turn_token",
        num_warps=8,
        num_stages=1,
    )
    assert found.metadata.shared <= SHARED
    assert stack_of(found, tmp_path) == 0
    together = compiled(
        prefixed_kernel._together,
        "found best total out",
        dict.fromkeys(("found", "best", "total"), "*fp32"),
        {"SHARED": 1, "GROUP": 8, "WIDTH": 256, "PARTS": 16, "AHEAD": True},
        num_warps=4,
        num_stages=1,
    )
    for text in (found.asm["ptx"], together.asm["ptx"]):
        assert text.index("griddepcontrol.wait") < text.index("ld.global")
