"""Attention of heads that share keys, as products over all of them, against torch's own."""

import pytest
import torch
from torch.nn import functional as F
from vla_core.interfaces import KVDims
from vla_core.packing import merged, pack
from vla_heads.few_queries import shared_heads
from vla_heads.pi0.expert import Expert, rotation


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_scaled_dot_product_attention(kv_heads: int, dtype: torch.dtype, tolerance: float) -> None:
    q = torch.randn(3, 4, 5, 8, dtype=dtype)
    k, v = (torch.randn(3, kv_heads, 11, 8, dtype=dtype) for _ in range(2))
    mask = torch.rand(3, 1, 5, 11) > 0.3
    mask[..., 0] = True
    found = shared_heads(q, k, v, mask)
    every = lambda x: x.repeat_interleave(4 // kv_heads, dim=1)  # noqa: E731
    expected = F.scaled_dot_product_attention(q, every(k), every(v), attn_mask=mask)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_packed_expert_computes_the_same(adaptive: bool) -> None:
    expert = Expert(2, 16, 24, KVDims(4, 1, 8, 10_000.0), adaptive)
    x, prefix = torch.randn(2, 3, 16), [(torch.randn(2, 1, 6, 8), torch.randn(2, 1, 6, 8))] * 2
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    by = rotation(torch.arange(6, 9).expand(2, 3), 8, 10_000.0)
    condition = torch.randn(2, 1, 16) if adaptive else None
    with torch.no_grad():
        before = expert(x, prefix, mask, by, condition)
        assert pack(expert) == 9
        torch.testing.assert_close(expert(x, prefix, mask, by, condition), before)
    names = [name for name, _ in expert.layers[0].named_parameters()]
    assert "self_attn.qkv.weight" in names
    assert "self_attn.q_proj.weight" not in names


def test_layers_of_different_inputs_are_not_merged() -> None:
    with pytest.raises(ValueError, match="different inputs"):
        merged(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3))
