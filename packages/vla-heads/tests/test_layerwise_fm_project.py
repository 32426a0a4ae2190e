"""``project_context: per_layer``: the blocks are narrower than the backbone (QwenPI_v3)."""

import dataclasses

import pytest
import torch
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims
from vla_heads import LayerwiseFM, LayerwiseFMConfig

TINY = LayerwiseFMConfig(
    n_future_tokens=2, state_hidden=16, decoder_hidden=16, project_context="per_layer", width=16, n_heads=2
)
MODES = pytest.mark.parametrize("concat", [False, True], ids=["self+cross", "concat"])


def build(dims, **changes):
    return LayerwiseFM.build(dataclasses.replace(TINY, **changes), dims)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overfits_without_a_dead_parameter(dims, make_inputs, targets, concat, dtype):
    dims = dataclasses.replace(dims, context_dim=12)
    head = build(dims, use_concat_cross_context=concat).to(dtype)
    inputs = make_inputs(context=True, dtype=dtype)
    draws = {"noise": torch.randn(3, 4, 6, 5), "time": torch.rand(3, 4)}
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        loss = head(inputs, *targets, **draws)["action_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < 0.5 * losses[0]


@MODES
def test_scale_of_a_layer_is_normalised_away(dims, make_inputs, wake, concat):
    head, inputs, noise = (
        wake(build(dims, use_concat_cross_context=concat)),
        make_inputs(),
        torch.randn(3, 6, 5),
    )
    base = head.sample(inputs, noise)
    for hidden in inputs.vlm.hidden.values():
        hidden.mul_(1000)
    assert torch.allclose(base, head.sample(inputs, noise), atol=1e-4)
    inputs.vlm.hidden[1][:, 0] += 1e3 * torch.randn(32)
    assert not torch.allclose(base, head.sample(inputs, noise), atol=1e-4)


def test_concat_shares_keys_and_values(dims):
    head = build(dims, use_concat_cross_context=True)
    assert not any(hasattr(block, "context_kv") for block in head.blocks)
    assert all(block.kv.in_features == 16 for block in head.blocks)
    assert all(block.context_kv.in_features == 16 for block in build(dims).blocks)
    with pytest.raises(ConfigError, match="project_context: 'each'"):
        build(dims, project_context="each")


@MODES
def test_projected_once_and_masks_hold(dims, make_inputs, targets, wake, concat):
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs()
    calls = []
    for block in head.blocks:
        block.context_in.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    noise, time = torch.randn(3, 5, 6, 5), torch.rand(3, 5)
    sampled = head.sample(inputs, noise[:, 0], steps=5)
    assert calls == [(3, 11, 16)] * 4
    calls.clear()
    actions, mask = targets
    loss = head(inputs, actions, mask, noise=noise, time=time)["action_loss"]
    assert calls == [(3, 11, 16)] * 4
    for hidden in inputs.vlm.hidden.values():
        hidden[0, 7:] = 1e3
    dirty = torch.where(mask, actions, float("nan"))
    assert torch.equal(loss, head(inputs, dirty, mask, noise=noise, time=time)["action_loss"])
    assert torch.equal(sampled, head.sample(inputs, noise[:, 0], steps=5))
    solo = make_inputs(rows=1)
    solo.state = inputs.state[2:]
    solo.vlm.mask = inputs.vlm.mask[2:]
    solo.vlm.hidden = {i: hidden[2:] for i, hidden in inputs.vlm.hidden.items()}
    assert torch.allclose(sampled[2:], head.sample(solo, noise[2:, 0], steps=5), atol=1e-5)


def test_full_size_on_the_meta_device():
    counts = {}
    for hidden in (2048, 2560):  # Qwen2.5-VL-3B, Qwen3-VL-4B
        for concat in (False, True):
            dims = HeadDims(hidden_size=hidden, n_layers=36, action_dim=7, horizon=16, state_dim=8)
            config = LayerwiseFMConfig(project_context="per_layer", use_concat_cross_context=concat)
            with torch.device("meta"):
                head = LayerwiseFM.build(config, dims)
            counts[hidden, concat] = sum(p.numel() for p in head.parameters())
            blocks = sum(p.numel() for n, p in head.named_parameters() if "context_in" not in n)
            assert blocks == pytest.approx(36 * (14 if concat else 18) * 1024**2, rel=0.02)
            if concat:
                assert round(blocks / 1e9, 2) == 0.54
    assert counts == {
        (2048, False): 765_641_735,
        (2048, True): 614_425_607,
        (2560, False): 784_552_967,
        (2560, True): 633_336_839,
    }
