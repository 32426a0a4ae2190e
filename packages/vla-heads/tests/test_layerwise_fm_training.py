import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput
from vla_heads import LayerwiseFM, LayerwiseFMConfig

TINY = LayerwiseFMConfig(n_future_tokens=2, state_hidden=16, decoder_hidden=16, repeated_diffusion_steps=2)
MODES = pytest.mark.parametrize("concat", [False, True], ids=["self+cross", "concat"])


def build(dims, **changes):
    return LayerwiseFM.build(dataclasses.replace(TINY, **changes), dims)


def woken(concat):
    torch.manual_seed(1)
    dims = HeadDims(hidden_size=16, n_layers=2, action_dim=3, horizon=4, state_dim=2)
    head = build(dims, use_concat_cross_context=concat, n_heads=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    hidden = {i: torch.randn(2, 5, 16) for i in (1, 2)}
    return head, HeadInputs(
        VLMOutput(hidden, torch.ones(2, 5, dtype=torch.bool), {}), state=torch.randn(2, 2)
    )


HEADS = {concat: woken(concat) for concat in (False, True)}
FILLS = st.sampled_from([7.0, float("nan"), 1e30])


@MODES
@settings(max_examples=25, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=24, max_size=24), fill=st.sampled_from([7.0, float("nan"), 1e30])
)
def test_masked_entries_change_nothing(concat, bits, fill):
    """Neither the loss nor a gradient sees what stands at masked actions or in their noise."""
    head, inputs = HEADS[concat]
    mask = torch.tensor(bits).view(2, 4, 3)
    generator = torch.Generator().manual_seed(3)
    actions = torch.randn(2, 4, 3, generator=generator)
    noise, time = torch.randn(2, 2, 4, 3, generator=generator), torch.rand(2, 2, generator=generator)
    results = []
    for dirty in (False, True):
        a = torch.where(mask, actions, fill) if dirty else actions
        n = torch.where(mask[:, None], noise, fill) if dirty else noise
        a = a.clone().requires_grad_()
        head.zero_grad()
        loss = head(inputs, a, mask, noise=n, time=time)["action_loss"]
        loss.backward()
        assert loss.isfinite()
        assert (a.grad[~mask] == 0).all()
        results.append((loss.detach(), [p.grad.clone() for p in head.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(x, y) for x, y in zip(results[0][1], results[1][1], strict=True))


@MODES
def test_fully_masked_steps_are_as_if_absent(concat):
    """A valid step's loss is the same whether the steps after it are masked or never attended to."""
    head, inputs = HEADS[concat]
    actions, noise, time = torch.randn(2, 4, 3), torch.randn(2, 1, 4, 3), torch.rand(2, 1)
    mask = torch.ones(2, 4, 3, dtype=torch.bool)
    mask[:, 2:] = False
    loss = head(inputs, actions, mask, noise=noise, time=time)["action_loss"]
    position = head.action_position.data[2:].clone()
    head.action_position.data[2:] += 10.0  # would leak through self-attention if the steps were keys
    assert torch.equal(loss, head(inputs, actions, mask, noise=noise, time=time)["action_loss"])
    head.action_position.data[2:] = position


@MODES
def test_nothing_valid_gives_zero_with_gradient(concat):
    head, inputs = HEADS[concat]
    head.zero_grad()
    loss = head(inputs, torch.randn(2, 4, 3), torch.zeros(2, 4, 3, dtype=torch.bool))["action_loss"]
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in head.parameters())


def test_loss_is_the_mean_over_valid_entries(dims, make_inputs, targets):
    head = build(dims)  # cold: predicts velocity 0, so the loss is the mean square of the target
    actions, mask = targets
    noise, time = torch.randn(3, 2, 6, 5), torch.rand(3, 2)
    loss = head(make_inputs(), actions, mask, noise=noise, time=time)["action_loss"]
    square = (actions[:, None] - noise).square()
    assert loss.item() == pytest.approx(square[mask[:, None].expand_as(square)].mean().item(), rel=1e-5)


@MODES
@pytest.mark.parametrize("context_dim", [None, 12])
def test_gradient_reaches_every_parameter_after_one_step(dims, make_inputs, targets, concat, context_dim):
    dims = dataclasses.replace(dims, context_dim=context_dim)
    head = build(dims, use_concat_cross_context=concat)
    inputs = make_inputs(context=context_dim is not None)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):  # the decoder and the modulations start at zero and wake up one after the other
        optimizer.zero_grad()
        head(inputs, *targets)["action_loss"].backward()
        optimizer.step()
    dead = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_gradient_reaches_the_backbone(dims, make_inputs, targets, wake):
    head, inputs = wake(build(dims)), make_inputs()
    for hidden in inputs.vlm.hidden.values():
        hidden.requires_grad_()
    head(inputs, *targets)["action_loss"].backward()
    assert inputs.vlm.hidden[0].grad is None
    for layer in head.layers:
        grad = inputs.vlm.hidden[layer].grad
        assert grad.any()
        assert not grad[0, 7:].any()  # padding


@MODES
def test_overfits_one_batch(dims, make_inputs, targets, concat):
    head, inputs = build(dims, use_concat_cross_context=concat), make_inputs()
    draws = {"noise": torch.randn(3, 4, 6, 5), "time": torch.rand(3, 4)}
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = head(inputs, *targets, **draws)["action_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@MODES
@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_time_and_targets_stay_fp32(dims, make_inputs, targets, concat, kind):
    """A bf16 head tells all 1000 buckets apart and loses nothing of the target."""
    head = build(dims, use_concat_cross_context=concat)
    inputs = make_inputs(dtype=torch.bfloat16)
    if kind == "bf16":
        head = head.to(torch.bfloat16)
    seen = []
    head.time.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    time = ((torch.arange(1000) + 0.5) / 1000).expand(3, -1)
    noise = torch.randn(3, 1000, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        loss = head(inputs, *targets, noise=noise, time=time)["action_loss"]
        loss.backward()
        sampled = head.sample(inputs, noise[:, 0])
    assert seen[0].unique().numel() == 1000
    assert sampled.dtype == loss.dtype == torch.float32
    assert sampled.isfinite().all()
    actions, mask = targets  # the cold head predicts 0: the loss shows the exact fp32 target
    square = (actions[:, None] - noise).square()
    assert loss.item() == pytest.approx(square[mask[:, None].expand_as(square)].mean().item(), rel=1e-5)
