import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ActionHead, Context, HeadDims, HeadInputs, VLMOutput
from vla_heads import AdapterHead, AdapterHeadConfig

TINY = AdapterHeadConfig(n_queries=4, n_blocks=4, width=24, n_heads=2, state_hidden=16)


def build(dims, **changes):
    return AdapterHead.build(dataclasses.replace(TINY, **changes), dims)


@pytest.fixture
def observe(make_inputs):
    return lambda **kw: make_inputs(n_queries=4, **kw)


@pytest.mark.parametrize(
    ("n_blocks", "layers"),
    [(4, (1, 2, 3, 4)), (None, (1, 2, 3, 4)), (2, (2, 4)), (3, (2, 3, 4)), (9, (1, 2, 3, 4))],
)
def test_prompt_and_request(dims, n_blocks, layers):
    head = build(dims, n_blocks=n_blocks)
    assert isinstance(head, ActionHead)
    assert head.prompt.n_query == 4
    request = head.request("train")
    assert request.layers == layers
    assert request.queries is head.queries
    assert head.queries.weight.shape == (4, 32)
    assert len(head.blocks) == (n_blocks or 4)
    assert head.reads == tuple(sorted(head.reads))


def test_reads_queries_and_image_and_nothing_else(dims, observe, wake):
    head, inputs, noise = wake(build(dims)), observe(), torch.zeros(3, 6, 5)
    base = head.sample(inputs, noise)
    assert base.shape == (3, 6, 5)
    read = inputs.vlm.spans["query"] | inputs.vlm.spans["image"]
    for hidden in inputs.vlm.hidden.values():
        hidden[~read] = 1e3
    inputs.vlm.hidden[0].fill_(1e3)
    assert torch.equal(base, head.sample(inputs, torch.randn(3, 6, 5), steps=9))
    for layer in (1, 4):
        for span in ("query", "image"):
            first = int(inputs.vlm.spans[span][0].nonzero()[0, 0])
            kept = inputs.vlm.hidden[layer].clone()
            inputs.vlm.hidden[layer][0, first] += torch.randn(32)
            changed = (head.sample(inputs, noise) - base).abs().amax((1, 2)) > 1e-7
            assert changed.tolist() == [True, False, False]
            inputs.vlm.hidden[layer] = kept


def test_vision_enters_through_a_gate_that_starts_shut(dims, observe):
    head, inputs, noise = build(dims), observe(), torch.zeros(3, 6, 5)
    nn.init.normal_(head.linear_out.weight)
    base = head.sample(inputs, noise)
    inputs.vlm.hidden[2][:, 0] += 1
    assert torch.equal(base, head.sample(inputs, noise))
    for block in head.blocks:
        nn.init.ones_(block.gate)
    opened = head.sample(inputs, noise)
    inputs.vlm.hidden[2][:, 0] += torch.randn(32)
    assert not torch.allclose(opened, head.sample(inputs, noise))


def test_a_row_without_images_is_finite(dims, observe, wake):
    head, inputs = wake(build(dims)), observe()
    inputs.vlm.spans["image"][1] = False
    assert head.sample(inputs, torch.zeros(3, 6, 5)).isfinite().all()


def test_head_context_joins_vision(dims, observe, wake):
    dims = dataclasses.replace(dims, context_dim=12)
    head, inputs, noise = wake(build(dims)), observe(context=True), torch.zeros(3, 6, 5)
    inputs.context.mask[:, 1] = False
    base = head.sample(inputs, noise)
    per_layer = [inputs.context.tokens.clone() for _ in range(4)]
    inputs.context.tokens[:, 1] = 1e3
    assert torch.equal(base, head.sample(inputs, noise))
    layered = dataclasses.replace(inputs, context=Context(per_layer, inputs.context.mask))
    assert torch.allclose(base, head.sample(layered, noise), atol=1e-6)
    per_layer[3][:, 0] += torch.randn(12)
    assert not torch.allclose(base, head.sample(layered, noise), atol=1e-6)
    with pytest.raises(UserError, match="context: missing"):
        head.sample(dataclasses.replace(inputs, context=None), noise)


def test_batched_answer_equals_solo(dims, observe, wake):
    head, inputs, noise = wake(build(dims)), observe(), torch.zeros(3, 6, 5)
    batched = head.sample(inputs, noise)
    for row in range(3):
        pick = slice(row, row + 1)
        spans = {name: span[pick] for name, span in inputs.vlm.spans.items()}
        vlm = VLMOutput({k: v[pick] for k, v in inputs.vlm.hidden.items()}, inputs.vlm.mask[pick], spans)
        solo = head.sample(HeadInputs(vlm, state=inputs.state[pick]), noise[pick])
        assert torch.allclose(batched[pick], solo, atol=1e-5)


def test_state_is_optional(dims, observe, wake):
    inputs, noise = observe(), torch.zeros(3, 6, 5)
    head = wake(build(dims))
    moved = dataclasses.replace(inputs, state=inputs.state + 1)
    assert not torch.allclose(head.sample(inputs, noise), head.sample(moved, noise))
    with pytest.raises(UserError, match="state: missing"):
        head.sample(dataclasses.replace(inputs, state=None), noise)
    blind = build(dataclasses.replace(dims, state_dim=0))
    assert blind.sample(dataclasses.replace(inputs, state=None), noise).isfinite().all()


def woken():
    torch.manual_seed(1)
    dims = HeadDims(hidden_size=16, n_layers=2, action_dim=3, horizon=4, state_dim=2)
    head = build(dims, width=16, n_blocks=2, n_queries=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mask = torch.ones(2, 5, dtype=torch.bool)
    spans = {"image": mask.clone(), "query": mask.clone()}
    spans["image"][:, 3:] = False
    spans["query"][:, :3] = False
    hidden = {i: torch.randn(2, 5, 16) for i in (1, 2)}
    return head, HeadInputs(VLMOutput(hidden, mask, spans), state=torch.randn(2, 2))


HEAD, INPUTS = woken()


@settings(max_examples=25, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=24, max_size=24),
    seen=st.lists(st.booleans(), min_size=4, max_size=4),
    fill=st.sampled_from([7.0, float("nan"), 1e30]),
)
def test_masked_entries_change_nothing(bits, seen, fill):
    """Neither the loss nor a gradient sees masked actions or masked state dims."""
    mask, state_mask = torch.tensor(bits).view(2, 4, 3), torch.tensor(seen).view(2, 2)
    actions = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    results = []
    for dirty in (False, True):
        a = (torch.where(mask, actions, fill) if dirty else actions).clone().requires_grad_()
        state = torch.where(state_mask, INPUTS.state, fill) if dirty else INPUTS.state
        HEAD.zero_grad()
        inputs = dataclasses.replace(INPUTS, state=state, state_mask=state_mask)
        loss = HEAD(inputs, a, mask)["action_loss"]
        loss.backward()
        assert loss.isfinite()
        assert (a.grad[~mask] == 0).all()
        grads = [p.grad.clone() for n, p in HEAD.named_parameters() if n != "queries.weight"]
        results.append((loss.detach(), grads))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(x, y) for x, y in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
def test_overfits_without_a_dead_parameter(dims, observe, targets, kind):
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    head = build(dataclasses.replace(dims, context_dim=12)).to(dtype)
    inputs = observe(context=True, dtype=dtype)
    layers = dict(inputs.vlm.hidden)
    query = inputs.vlm.spans["query"][..., None]
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        # Stand in for the backbone, which passes the learned queries on to every layer.
        for i, layer in layers.items():
            inputs.vlm.hidden[i] = layer.masked_scatter(query, head.queries.weight.repeat(3, 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            loss = head(inputs, *targets)["action_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    actions, mask = targets  # the cold head predicts 0: the loss shows the exact fp32 target
    assert losses[0] == pytest.approx(actions[mask].abs().mean().item(), rel=1e-6)
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < 0.5 * losses[0]
    assert loss.dtype == torch.float32


def test_compiles_without_graph_breaks(dims, observe, targets):
    head, inputs = build(dims, n_blocks=2), observe()
    assert torch._dynamo.explain(head.forward)(inputs, *targets).graph_break_count == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_queries": 0}, "n_queries: must be >= 1, got 0"),
        ({"n_blocks": 0}, "n_blocks: must be >= 1, got 0"),
        ({"n_heads": 5}, "n_heads: width 24"),
        ({"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_config(dims, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(dims, **changes)


def test_full_size_on_the_meta_device():
    dims = HeadDims(hidden_size=2048, n_layers=36, action_dim=7, horizon=16, state_dim=8)
    with torch.device("meta"):
        head = AdapterHead.build(AdapterHeadConfig(), dims)
    assert len(head.blocks) == 24
    assert head.reads[0] == 2
    assert head.reads[-1] == 36
    assert sum(p.numel() for p in head.parameters()) == 380_268_575
