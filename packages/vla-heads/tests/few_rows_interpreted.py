"""The kernels for few rows in Triton's interpreter; test_few_rows.py runs this file where it is turned on."""

import pytest
import torch
from torch.nn import functional as F
from vla_heads import few_rows
from vla_heads.few_rows_kernel import counters_of, product
from vla_heads.few_rows_plans import Plan
from vla_heads.layerwise_fm.block import DiTBlock


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


@pytest.mark.parametrize("rows", [1, 17, 64, 70])
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
    run = lambda x: product(x, weight, None, None, None, True, False, Plan(64, 64, 3, 2, ahead=False))  # noqa: E731
    full = run(x)
    for rows in (1, 49, 63):
        assert torch.equal(run(x[:rows].contiguous()), full[:rows])
    assert torch.equal(run(x), full)
    assert not counters_of(weight).any()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take the kernels on a CPU and in float32."""
    monkeypatch.setattr(few_rows, "capable", lambda device: True)
    monkeypatch.setattr(few_rows.Streamed, "takes", lambda layer, x: True)
    monkeypatch.setattr(few_rows, "_plan", lambda x, weight, paired: Plan(32, 64, 2, 2, ahead=False))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("concat", "project"), [(False, False), (True, False), (True, True)])
def test_a_packed_block_computes_the_same(concat: bool, project: bool) -> None:
    block = DiTBlock(128, 4, 128, concat, dropout=0.1, project=project).eval()
    x, context = torch.randn(2, 1, 5, 128), torch.randn(2, 11, 128)
    mask = torch.rand(2, 1, 1, 11) > 0.3
    mask[..., 0] = True
    modulation = torch.randn(2, 1, 256)
    with torch.inference_mode():
        given = (x, block.project_context(context), mask, modulation, None)
        before = block(*given)
        block.pack()
        assert any(isinstance(layer, few_rows.Streamed) for layer in block.modules())
        torch.testing.assert_close(block(*given), before, rtol=1e-4, atol=1e-4)
