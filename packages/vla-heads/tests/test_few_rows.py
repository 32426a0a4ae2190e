"""Linear layers for few rows: which of them take kernels, and those kernels in Triton's interpreter."""

import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.interfaces import KVDims
from vla_core.packing import pack
from vla_heads import few_rows
from vla_heads.few_rows import when
from vla_heads.few_rows.layers import Streamed
from vla_heads.few_rows.plans import MOST_ROWS, PLANS, Plan
from vla_heads.layerwise_fm.block import DiTBlock
from vla_heads.pi0.expert import Expert, rotation


def test_the_kernels_compute_what_torch_does() -> None:
    pytest.importorskip("triton")
    file = Path(__file__).parent / "few_rows_interpreted.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", file]
    ran = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stdout


def test_a_layer_on_a_cpu_stays_a_plain_one() -> None:
    layer = nn.Linear(128, 128).bfloat16()
    assert not few_rows.mark(layer)
    assert type(layer) is nn.Linear


def test_a_marked_layer_takes_nothing_but_bfloat16_of_a_gpu_in_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(when, "capable", lambda device: True)
    monkeypatch.setitem(PLANS, (128, 128, False), Plan(64, 128, 1, 4))
    layer, other = nn.Linear(128, 128).eval(), nn.Linear(100, 128)
    assert few_rows.mark(nn.Sequential(layer, other))
    assert type(layer) is Streamed
    assert type(other) is nn.Linear  # no plan is known
    x = torch.randn(3, 128)
    with torch.inference_mode():
        assert not layer.takes(x)
        assert torch.equal(few_rows.linear(layer, x), F.linear(x, layer.weight, layer.bias))


def test_a_layer_counts_with_zeros_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(when, "capable", lambda device: True)
    monkeypatch.setitem(PLANS, (128, 128, False), Plan(64, 128, 2, 4))
    monkeypatch.setitem(PLANS, (96, 96, False), Plan(32, 96, 1, 4))
    first, second, whole = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(96, 96)
    assert few_rows.mark(nn.Sequential(first, second, whole))
    assert [layer.counters is None for layer in (first, second, whole)] == [False, False, True]
    assert first.counters.tolist() == [0, 0]
    assert first.counters.data_ptr() != second.counters.data_ptr()
    assert first.bfloat16().counters.dtype is torch.int32
    assert set(first.state_dict()) == {"weight", "bias"}
    there = weakref.ref(first.counters)
    del first
    assert there() is None


def test_where_triton_starts_no_kernel_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Driver:
        @property
        def active(self) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (when.CAPABILITY, 0))
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace(driver=Driver()))
    when._startable.cache_clear()
    try:
        assert not when.capable(torch.device("cuda"))
        assert not when.capable(torch.device("cuda"))
    finally:
        when._startable.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "no kernels for few rows, which is slower: Triton cannot start any here (Failed to find C compiler.)"
    ]


def test_without_kernels_it_is_the_layers_own_arithmetic() -> None:
    layer, x, residual, gate = nn.Linear(8, 12), *(torch.randn(2, 3, n) for n in (8, 12, 12))
    half, dropout = torch.randn(2, 3, 6), nn.Dropout(0.5)
    y = layer(x)
    assert torch.equal(few_rows.linear(layer, x), y)
    assert torch.equal(few_rows.linear(layer, x, residual, gate), residual + y * gate)
    first, second = y.chunk(2, dim=-1)
    expected = half + F.gelu(first, approximate="tanh") * second
    assert torch.equal(few_rows.linear(layer, x, half, gelu=True, paired=True), expected)
    torch.manual_seed(1)
    dropped = few_rows.linear(layer, x, residual.flatten(0, 1), dropout=dropout)
    torch.manual_seed(1)
    assert torch.equal(dropped, residual.flatten(0, 1) + dropout(y.flatten(0, 1)))


@pytest.mark.parametrize("shape", PLANS)
def test_plans_divide_their_products(shape: tuple[int, int, bool]) -> None:
    (outputs, inputs, paired), plan = shape, PLANS[shape]
    assert outputs % plan.columns == 0
    assert inputs % plan.depth == 0
    assert inputs // plan.depth >= plan.split
    shared = 2 * plan.depth * plan.stages * (MOST_ROWS + plan.columns * (2 if paired else 1))
    assert shared <= 227 * 1024  # of a multiprocessor, for a program


def test_blocks_without_a_plan_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(when, "capable", lambda device: True)
    norm, layer = nn.LayerNorm(100), nn.Linear(100, 128)
    assert not few_rows.mark(nn.Sequential(norm, layer))
    assert (type(norm), type(layer)) == (nn.LayerNorm, nn.Linear)


on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != when.CAPABILITY,
    reason="needs a Hopper GPU",
)


def narrow(value: Any) -> Any:
    """Numbers in ``value`` as bfloat16."""
    if isinstance(value, (tuple, list)):
        return tuple(map(narrow, value))
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype is torch.float32 else value


@torch.inference_mode()
def check_packed(part: nn.Module, *given: Any, turns: int | None = None) -> None:
    """Not further from float32 than torch's kernels by much, and bit by bit the same in each replay.

    ``given[turns]``, rotary positions, stay float32.
    """
    exact = part(*given)
    given = tuple(value if at == turns else narrow(value) for at, value in enumerate(given))
    plain = part.bfloat16()(*given)
    pack(part)
    assert any(isinstance(layer, Streamed) for layer in part.modules())
    packed = part(*given)
    assert (packed - exact).abs().max() <= 2 * (plain - exact).abs().max()
    assert (packed - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = part(*given)
    for _ in range(20):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, packed)


@on_hopper
@pytest.mark.gpu
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_expert_on_a_gpu(adaptive: bool, rows: int) -> None:
    torch.manual_seed(0)
    expert = Expert(2, 1024, 4096, KVDims(8, 1, 256, 10_000.0), adaptive).cuda().eval()
    for parameter in expert.parameters():
        nn.init.normal_(parameter, std=0.02)
    x = torch.randn(rows, 51, 1024, device="cuda")
    prefix = [tuple(torch.randn(2, rows, 1, 60, 256, device="cuda"))] * 2
    mask = torch.ones(rows, 1, 51, 111, dtype=torch.bool, device="cuda")
    by = rotation(torch.arange(60, 111, device="cuda").expand(rows, 51), 256, 10_000.0)
    condition = torch.randn(rows, 1, 1024, device="cuda") if adaptive else None
    check_packed(expert, x, prefix, mask, by, condition, turns=3)


@on_hopper
@pytest.mark.gpu
@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_block_on_a_gpu(concat: bool, rows: int) -> None:
    torch.manual_seed(0)
    block = DiTBlock(2048, 32, 2048, concat, dropout=0.1).cuda().eval()
    x, context = torch.randn(rows, 1, 49, 2048).cuda(), torch.randn(rows, 190, 2048).cuda()
    mask = (torch.arange(190) < 150).expand(rows, 1, 1, -1).cuda()
    modulation = 0.3 * torch.randn(1, 1, 4096).cuda()
    with torch.inference_mode():
        keys_values = block.project_context(context)
    check_packed(block, x, keys_values, mask, modulation, None)


@on_hopper
@pytest.mark.gpu
def test_a_layer_may_be_captured_before_it_computes() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(2)).cuda().bfloat16().eval()
    assert few_rows.mark(layers)
    x = torch.randn(49, 2048, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        few_rows.linear(layers[0], x)  # compiles the kernel
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = few_rows.linear(layers[1], x)
        before = few_rows.linear(layers[1], x)
        graph.replay()
        assert torch.equal(captured, before)
        torch.testing.assert_close(before, layers[1](x), rtol=2e-2, atol=2e-2)
