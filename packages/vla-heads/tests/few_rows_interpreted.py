"""The kernels for few rows in Triton's interpreter; test_few_rows.py runs this file where it is turned on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vla_core.interfaces import KVDims
from vla_core.packing import pack
from vla_heads.few_queries import shared_heads
from vla_heads.few_rows import layers, when
from vla_heads.few_rows.attention_kernel import attended
from vla_heads.few_rows.norm_kernel import normed
from vla_heads.few_rows.plans import Plan
from vla_heads.few_rows.prefixed_kernel import prefixed
from vla_heads.few_rows.product_kernel import product
from vla_heads.layerwise_fm.block import DiTBlock
from vla_heads.pi0.expert import Expert, rotate, rotation


def given(rows: int, outputs: int, inputs: int, paired: bool, **have: bool) -> list[torch.Tensor | None]:
    twice = outputs * (2 if paired else 1)
    weight = torch.randn(twice, inputs) * inputs**-0.5
    shapes = {"bias": (twice,), "residual": (rows, outputs), "gate": (rows, outputs)}
    rest = [torch.randn(shape) if have.get(name, True) else None for name, shape in shapes.items()]
    return [torch.randn(rows, inputs), weight, *rest]


def reference(x, weight, bias, residual, gate, gelu, paired):
    y = F.linear(x, weight, bias)
    y, other = y.chunk(2, dim=-1) if paired else (y, 1.0)
    y = (F.gelu(y, approximate="tanh") if gelu else y) * other * (1.0 if gate is None else gate)
    return y if residual is None else residual + y


@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("split", [1, 3])
def test_products(rows: int, paired: bool, split: int) -> None:
    tensors = given(rows, 128, 256, paired)
    for gelu in (True, False):
        got = product(*tensors, gelu=gelu, paired=paired, plan=Plan(64, 64, split, 2, ahead=False))
        torch.testing.assert_close(got, reference(*tensors, gelu, paired), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("missing", ["bias", "residual", "gate"])
def test_parts_may_be_missing(missing: str) -> None:
    tensors = given(5, 64, 128, False, **{missing: False})
    got = product(*tensors, gelu=True, paired=False, plan=Plan(32, 64, 2, 2, ahead=False))
    torch.testing.assert_close(got, reference(*tensors, True, False), rtol=1e-4, atol=1e-4)


def test_one_gate_for_all_rows() -> None:
    x, weight, bias, residual, gate = given(5, 64, 128, False)
    got = product(x, weight, bias, residual, gate[:1], False, False, Plan(64, 64, 1, 2, ahead=False))
    expected = reference(x, weight, bias, residual, gate[:1].expand_as(gate), False, False)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight, *_ = given(64, 128, 256, False)
    plan, counters = Plan(64, 64, 3, 2, ahead=False), torch.zeros(2, dtype=torch.int32)
    run = lambda x: product(x, weight, None, None, None, True, False, plan, counters)  # noqa: E731
    full = run(x)
    for rows in (1, 49, 63):
        assert torch.equal(run(x[:rows].contiguous()), full[:rows])
    assert torch.equal(run(x), full)
    assert not counters.any()


@pytest.mark.parametrize("keys", [5, 64, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(keys: int, masked: bool) -> None:
    """Also where the first keys, more than a program sees at a time, are all hidden."""
    q = torch.randn(2, 70, 3, 32).transpose(1, 2)
    k, v = torch.randn(2, keys, 2, 3, 32).permute(2, 0, 3, 1, 4)
    mask = torch.rand(2, keys) > 0.5
    mask[1, :150], mask[:, -1] = False, True
    given = mask if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] if masked else None)
    got = attended(q, k, v, given, ahead=False)
    torch.testing.assert_close(got, expected.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", [5, 64, 100])
@pytest.mark.parametrize("shared", [1, 2])
def test_attention_behind_a_prefix(prefix: int, shared: int) -> None:
    """Also where a query sees nothing of the first part."""
    q, k, v = torch.randn(2, 21, 4 + 2 * shared, 32).transpose(1, 2).split([4, shared, shared], dim=1)
    before = torch.randn(2, prefix, shared, 32).transpose(1, 2), torch.randn(2, shared, prefix, 32)
    mask = torch.rand(2, 1, 21, prefix + 21) > 0.5
    mask[:, :, 3, :64], mask[..., -1] = False, True
    by = rotation(torch.arange(prefix, prefix + 21).expand(2, 21), 32, 10_000.0)
    keys, values = torch.cat([before[0], rotate(k, by)], dim=2), torch.cat([before[1], v], dim=2)
    expected = shared_heads(rotate(q, by), keys, values, mask).transpose(1, 2).flatten(2)
    turns = (turn.flatten(0, 1) for turn in by)
    got = prefixed(q, k, v, *before, mask.flatten(0, 1), *turns, ahead=False)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("rows", [1, 5])
def test_norms(width: int, rows: int) -> None:
    x = 3.0 + 2.0 * torch.randn(5, width)
    scale, shift = torch.randn(rows, 3 * width).chunk(3, dim=-1)[:2]
    plain = F.layer_norm(x, (width,))
    got = normed(x, scale, shift, 1e-5, centred=True, offset=1.0, ahead=False)
    torch.testing.assert_close(got, plain * (1 + scale) + shift, rtol=1e-4, atol=1e-4)
    got = normed(x, None, None, 1e-5, centred=True, offset=0.0, ahead=False)
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)
    got = normed(x, scale, None, 1e-6, centred=False, offset=0.0, ahead=False)
    torch.testing.assert_close(got, F.rms_norm(x, (width,), eps=1e-6) * scale, rtol=1e-4, atol=1e-4)


class Everything(dict[tuple[int, int, bool], Plan]):
    """Plans of all sizes."""

    def __contains__(self, shape: object) -> bool:
        return True

    def __missing__(self, shape: tuple[int, int, bool]) -> Plan:
        return Plan(32, 32, 2, 2, ahead=False)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take the kernels on a CPU and in float32, where nothing is fetched ahead."""
    monkeypatch.setattr(when, "capable", lambda device: True)
    monkeypatch.setattr(layers.Streamed, "takes", lambda layer, x: True)
    monkeypatch.setattr(layers, "PLANS", Everything())
    monkeypatch.setattr(when, "few", lambda x: True)
    for name in ("attention", "norm", "prefixed"):
        monkeypatch.setattr(f"vla_heads.few_rows.{name}_kernel.AHEAD", False)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("concat", "project"), [(False, False), (True, False), (True, True)])
def test_a_packed_block_computes_the_same(concat: bool, project: bool) -> None:
    block = DiTBlock(64, 2, 64, concat, dropout=0.1, project=project).eval()
    x, context = torch.randn(2, 1, 5, 64), torch.randn(2, 11, 64)
    mask = torch.rand(2, 1, 1, 11) > 0.3
    mask[..., 0] = True
    modulation = torch.randn(2, 1, 128)
    with torch.inference_mode():
        given = (x, block.project_context(context), mask, modulation, None)
        before = block(*given)
        block.pack()
        assert sum(isinstance(layer, layers.Streamed) for layer in block.modules()) >= 4
        assert block.streamed
        torch.testing.assert_close(block(*given), before, rtol=1e-4, atol=1e-4)
        if not concat:
            traced = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
            torch.testing.assert_close(traced(*given), before, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("conditions", [1, 3])
def test_a_packed_expert_computes_the_same(adaptive: bool, conditions: int) -> None:
    expert = Expert(1, 128, 256, KVDims(4, 1, 32, 10_000.0), adaptive).eval()
    for parameter in expert.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, prefix = torch.randn(2, 3, 128), [(torch.randn(2, 1, 6, 32), torch.randn(2, 1, 6, 32))]
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    by = rotation(torch.arange(6, 9).expand(2, 3), 32, 10_000.0)
    condition = torch.randn(2, conditions, 128) if adaptive else None
    with torch.inference_mode():
        before = expert(x, prefix, mask, by, condition)
        pack(expert)
        assert expert.norm.streamed
        torch.testing.assert_close(expert(x, prefix, mask, by, condition), before, rtol=1e-4, atol=1e-4)
        if conditions == 1 and adaptive:
            traced = torch.compile(expert, backend="aot_eager", fullgraph=True, dynamic=False)
            torch.testing.assert_close(traced(x, prefix, mask, by, condition), before, rtol=1e-4, atol=1e-4)
