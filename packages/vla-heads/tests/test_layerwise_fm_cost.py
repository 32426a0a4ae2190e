"""The context is projected once per observation; the FLOP counter proves it."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput
from vla_core.packing import pack
from vla_heads import LayerwiseFM, LayerwiseFMConfig

W, N, S, T, F = 64, 3, 40, 8, 7
L = F + T
DIMS = HeadDims(hidden_size=W, n_layers=N, action_dim=4, horizon=T)


def build(**changes):
    config = LayerwiseFMConfig(n_future_tokens=F, decoder_hidden=16, n_heads=2)
    return LayerwiseFM.build(dataclasses.replace(config, **changes), DIMS).eval()


def observation():
    hidden = {i: torch.randn(1, S, W) for i in range(1, N + 1)}
    return HeadInputs(VLMOutput(hidden, torch.ones(1, S, dtype=torch.bool), {}))


def flops(fn):
    # The math kernel is made of matrix products, which the counter sees on every platform.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def training(head, repeats):
    noise, time = torch.randn(1, repeats, T, 4), torch.rand(1, repeats)
    actions, mask = torch.randn(1, T, 4), torch.ones(1, T, 4, dtype=torch.bool)
    return flops(lambda: head(observation(), actions, mask, noise=noise, time=time))


def context_flops():
    return 4 * N * S * W * W


@pytest.mark.parametrize("concat", [False, True])
def test_repeats_share_the_context(concat):
    head = build(use_concat_cross_context=concat)
    one, five = training(head, 1), training(head, 5)
    per_repeat = (five - one) / 4
    assert one - per_repeat == context_flops()  # all that does not grow with R, and nothing else
    blocks = N * (L * ((24 if concat else 28) * W * W + 4 * W * (S + L)) + 4 * W * W)
    assert per_repeat == pytest.approx(blocks, rel=0.15)  # the rest is encoder, decoder and time


@pytest.mark.parametrize("concat", [False, True])
def test_denoise_steps_share_the_context(concat):
    head = build(use_concat_cross_context=concat)
    inputs, noise = observation(), torch.randn(1, T, 4)
    cost = {steps: flops(lambda s=steps: head.sample(inputs, noise, steps=s)) for steps in (1, 2, 4)}
    per_step = cost[2] - cost[1]
    assert cost[4] - cost[2] == 2 * per_step
    assert cost[1] - per_step == context_flops()
    planned = head.plan(4)
    assert flops(lambda: head.sample(inputs, noise, plan=planned)) < cost[4]


def test_a_packed_head_makes_a_plan_once():
    head = build()
    inputs, noise = observation(), torch.randn(1, T, 4)
    with torch.inference_mode():
        before, cost = head.sample(inputs, noise, steps=4), flops(lambda: head.sample(inputs, noise, steps=4))
        plan = head.plan(4)
        planned = flops(lambda: head.sample(inputs, noise, plan=plan))
        assert pack(head) == 1 + N  # the head and its blocks
        assert torch.equal(head.sample(inputs, noise, steps=4), before)
        assert head.plan(4) is head.plan(4)
        assert flops(lambda: head.sample(inputs, noise, steps=4)) == planned < cost
        for steps in range(5, 20):
            head.plan(steps)
        assert head.plan(4) is head.plan(4)
        assert head.plan(19) is head.plan(19)
        assert head.plan(200) is not head.plan(200)  # no more steps are kept: clients may ask for any number
    head.plan(4)[0].modulations[0].sum().backward()  # with gradients: not what was kept
    assert head.blocks[0].ada.modulation.weight.grad is not None


def test_a_packed_head_that_moves_makes_its_plans_anew():
    head = build()
    pack(head)
    with torch.no_grad():
        assert head.plan(4)[0].actions.dtype is torch.float32
        assert head.double().plan(4)[0].actions.dtype is torch.float64
        assert head.plan(4) is head.plan(4)


def test_layer_norm_and_projection_run_once_per_observation():
    head = build()
    calls = []
    for block in head.blocks:
        block.context_kv.register_forward_hook(lambda *args: calls.append(args[1][0].shape))
    head.sample(observation(), torch.randn(1, T, 4), steps=6)
    assert calls == [(1, S, W)] * N
    calls.clear()
    training(head, 5)
    assert calls == [(1, S, W)] * N


def test_compiles_without_graph_breaks():
    head = build()
    explanation = torch._dynamo.explain(head.sample)(observation(), torch.randn(1, T, 4))
    assert explanation.graph_break_count == 0
    actions, mask = torch.randn(1, T, 4), torch.ones(1, T, 4, dtype=torch.bool)
    assert torch._dynamo.explain(head.forward)(observation(), actions, mask).graph_break_count == 0
