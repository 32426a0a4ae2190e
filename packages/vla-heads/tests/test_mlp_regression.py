import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ActionHead
from vla_heads import MLPRegression, MLPRegressionConfig
from vla_heads.losses import masked_mean

CONFIG = MLPRegressionConfig(width=48, state_hidden=16)


def build(dims, **changes):
    return MLPRegression.build(dataclasses.replace(CONFIG, **changes), dims)


def test_prompt_and_request(dims):
    head = build(dims)
    assert isinstance(head, ActionHead)
    assert head.prompt.suffix == "Please predict the next 6 robot actions: "
    assert head.prompt.n_query == 6
    request = head.request("train")
    assert request.layers == (4,)
    assert request.queries.weight.shape == (6, 32)


def test_reads_the_queries_only(dims, make_inputs, wake):
    head, inputs = wake(build(dims)), make_inputs()
    base = head.sample(inputs, torch.zeros(3, 6, 5))
    assert base.shape == (3, 6, 5)
    query = inputs.vlm.spans["query"]
    inputs.vlm.hidden[4][~query] = 1e3
    assert torch.equal(base, head.sample(inputs, torch.randn(3, 6, 5), steps=9))
    # Each action comes from its own query, in order.
    first = query[0].nonzero()[0, 0]
    inputs.vlm.hidden[4][0, first] += torch.randn(32)
    changed = (head.sample(inputs, base) != base).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 0]]


def test_state_is_optional(dims, make_inputs, wake):
    inputs = make_inputs()
    moved = dataclasses.replace(inputs, state=inputs.state + 1)
    noise = torch.zeros(3, 6, 5)
    head = wake(build(dims))
    assert not torch.allclose(head.sample(inputs, noise), head.sample(moved, noise))
    mask = torch.zeros(3, 7, dtype=torch.bool)
    masked = [dataclasses.replace(x, state_mask=mask) for x in (inputs, moved)]
    assert torch.equal(head.sample(masked[0], noise), head.sample(masked[1], noise))
    with pytest.raises(UserError, match="state: missing"):
        head.sample(dataclasses.replace(inputs, state=None), noise)
    blind = wake(build(dims, use_state=False))
    assert blind.state_encoder is None
    assert torch.equal(blind.sample(inputs, noise), blind.sample(moved, noise))
    none = wake(build(dataclasses.replace(dims, state_dim=0)))
    assert none.sample(dataclasses.replace(inputs, state=None), noise).isfinite().all()


def test_batched_answer_equals_solo_and_loss_is_masked_l1(dims, make_inputs, targets):
    head, (actions, mask) = build(dims), targets
    loss = head(make_inputs(), actions, mask)["action_loss"]  # cold: predicts 0
    assert loss.item() == pytest.approx(actions[mask].abs().mean().item(), rel=1e-6)
    dirty = torch.where(mask, actions, float("nan"))
    assert torch.equal(loss, head(make_inputs(), dirty, mask)["action_loss"])


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=12, max_size=12))
def test_masked_mean(bits):
    mask = torch.tensor(bits).view(3, 4)
    value = torch.where(mask, torch.randn(3, 4), float("nan")).requires_grad_()
    mean = masked_mean(value, mask)
    mean.backward()
    assert mean.item() == pytest.approx(value[mask].mean().item() if mask.any() else 0.0, abs=1e-6)
    assert (value.grad[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_and_overfit(dims, make_inputs, targets, dtype):
    head, inputs = build(dims).to(dtype), make_inputs(dtype=dtype)
    layer = inputs.vlm.hidden[4]
    query = inputs.vlm.spans["query"]
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        # Stand in for the backbone, which passes the learned queries on to the last hidden state.
        inputs.vlm.hidden[4] = layer.masked_scatter(query[..., None], head.queries.weight.repeat(3, 1))
        loss = head(inputs, *targets)["action_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < 0.5 * losses[0]
    assert loss.dtype == torch.float32


def test_bad_config(dims):
    with pytest.raises(ConfigError, match="n_blocks"):
        build(dims, n_blocks=-1)
    with pytest.raises(ConfigError, match="cannot read the head context"):
        build(dataclasses.replace(dims, context_dim=12))
