import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ActionHead, Context, HeadDims, HeadInputs, VLMOutput
from vla_core.packing import pack, read_once
from vla_heads import GR00TFlow, GR00TFlowConfig
from vla_heads.category import CategoryLinear

TINY = GR00TFlowConfig(
    size="custom",
    width=32,
    n_heads=2,
    n_blocks=4,
    output_width=24,
    n_future_tokens=2,
    state_hidden=16,
    decoder_hidden=16,
    repeated_diffusion_steps=2,
)
DIMS = HeadDims(hidden_size=32, n_layers=4, action_dim=5, horizon=6, state_dim=7, n_embodiments=3)
ROWS = torch.tensor([2, 0, 1])


def build(dims=DIMS, **changes):
    return GR00TFlow.build(dataclasses.replace(TINY, **changes), dims)


def rows_of(inputs, rows):
    vlm = inputs.vlm
    return HeadInputs(
        VLMOutput({k: v[rows] for k, v in vlm.hidden.items()}, vlm.mask[rows], {}),
        None if inputs.context is None else Context(inputs.context.tokens[rows], inputs.context.mask[rows]),
        inputs.state[rows],
        embodiment=inputs.embodiment[rows],
    )


@pytest.fixture
def observe(make_inputs):
    return lambda **kw: dataclasses.replace(make_inputs(**kw), embodiment=ROWS)


def test_each_row_has_the_weights_of_its_category():
    layer = CategoryLinear(4, 3, 5)
    nn.init.normal_(layer.bias)
    category = torch.tensor([4, 0, 4])
    for x in (torch.randn(3, 4), torch.randn(3, 2, 6, 4), torch.randn(1, 2, 4)):
        y, bias = layer(x, category), layer.bias.view(5, 3)
        for row, c in enumerate(category.tolist()):
            expected = F.linear(x.expand(3, *x.shape[1:])[row], layer.weight[c], bias[c])
            assert torch.allclose(y[row], expected, atol=1e-6)
    y.sum().backward()
    assert layer.weight.grad.flatten(1).any(1).tolist() == [True, False, False, False, True]
    with pytest.raises(UserError, match="embodiment: missing"):
        layer(x)
    one = CategoryLinear(4, 3, 1)
    assert torch.equal(one(x), F.linear(x, one.weight[0], one.bias))


def test_what_is_read_once_is_not_read_for_another_answer(observe):
    """The time is mixed with weights of a row's own here."""
    head, read = build(), set()
    pack(head)
    inputs, noise = observe(), torch.randn(3, 6, 5)
    with torch.inference_mode():
        head.sample(inputs, noise)
        for part in head.modules():
            part.register_forward_hook(lambda part, *_: read.add(part))
        head.sample(inputs, noise)
    assert head.action_encoder.mix_time in read
    assert head.time in read_once(head)
    assert not read & read_once(head)


@pytest.mark.parametrize(("layer", "read"), [(-1, 4), (-2, 3), (0, 0), (3, 3)])
def test_requests_one_layer(observe, targets, layer, read):
    head = build(layer=layer)
    assert isinstance(head, ActionHead)
    assert head.request("train").layers == head.request("sample").layers == (read,)
    inputs = observe()
    inputs.vlm.hidden = {read: inputs.vlm.hidden[read]}
    assert head(inputs, *targets)["action_loss"].isfinite()


def test_blocks_alternate(observe, wake):
    head = wake(build(n_future_tokens=0))
    assert [hasattr(block, "context_kv") for block in head.blocks] == [True, False, True, False]
    inputs, x, t = observe(), torch.randn(3, 6, 5), torch.full((3,), 0.5)
    for block in head.blocks[::2]:
        nn.init.zeros_(block.out.weight)
    base = head.step(head.prepare(inputs), x, t)
    inputs.vlm.hidden[4] += 1.0  # self-attention alone: nothing of the backbone ...
    assert torch.equal(base, head.step(head.prepare(inputs), x, t))
    x[:, 0] += 1  # ... but every other token
    assert not torch.allclose(base[:, 1:], head.step(head.prepare(inputs), x, t)[:, 1:], atol=1e-6)


def test_context_is_projected_once(observe, wake, targets):
    head, inputs = wake(build(normalize_vl_hidden=True)), observe()
    calls = []
    for block in head.blocks[::2]:
        block.context_kv.register_forward_hook(lambda module, args, out: calls.append(args[0]))
    head.sample(inputs, torch.randn(3, 6, 5), steps=5)
    assert [c.shape for c in calls] == [(3, 11, 32)] * 2
    assert calls[0] is calls[1]  # one LayerNorm for all blocks
    calls.clear()
    head(inputs, *targets, noise=torch.randn(3, 9, 6, 5))
    assert [c.shape for c in calls] == [(3, 11, 32)] * 2


def test_cost_is_the_documented_one():
    w, k, s, t, h, future = 64, 4, 40, 8, 96, 7
    dims = HeadDims(hidden_size=h, n_layers=3, action_dim=4, horizon=t)
    head = build(dims, width=w, n_blocks=k, n_future_tokens=future, output_width=16).eval()
    inputs = HeadInputs(VLMOutput({3: torch.randn(1, s, h)}, torch.ones(1, s, dtype=torch.bool), {}))
    mask = torch.ones(1, t, 4, dtype=torch.bool)

    def flops(repeats):
        noise, time = torch.randn(1, repeats, t, 4), torch.rand(1, repeats)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            head(inputs, torch.zeros(1, t, 4), mask, noise=noise, time=time)
        return counter.get_total_flops()

    per_repeat = (flops(5) - flops(1)) / 4
    assert flops(1) - per_repeat == 2 * k * s * h * w  # the context, however many repeats share it
    tokens = t + future
    blocks = k * (tokens * (22 * w * w + 2 * w * (s + tokens)) + 4 * w * w)
    assert per_repeat == pytest.approx(blocks, rel=0.05)  # the rest is encoder, decoder and time


def test_repeats_equal_separate_passes_and_draws_reproduce(observe, targets, wake):
    head, inputs = wake(build()), observe()
    noise, time = torch.randn(3, 4, 6, 5), torch.rand(3, 4)
    together = head(inputs, *targets, noise=noise, time=time)["action_loss"]
    assert torch.equal(together, head(inputs, *targets, noise=noise, time=time)["action_loss"])
    apart = [head(inputs, *targets, noise=noise[:, r], time=time[:, r])["action_loss"] for r in range(4)]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


def test_batched_answer_equals_solo(observe, wake):
    head = wake(build(dataclasses.replace(DIMS, context_dim=12)))
    inputs, noise = observe(context=True), torch.randn(3, 6, 5)
    batched = head.sample(inputs, noise)
    for row in range(3):
        solo = head.sample(rows_of(inputs, slice(row, row + 1)), noise[row : row + 1])
        assert torch.allclose(batched[row : row + 1], solo, atol=1e-5)
    other = dataclasses.replace(inputs, embodiment=torch.tensor([2, 1, 1]))
    changed = (head.sample(other, noise) - batched).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


def test_sample_is_euler_and_padding_is_ignored(observe, wake):
    head = wake(build(dataclasses.replace(DIMS, context_dim=12)))
    inputs, noise = observe(context=True), torch.randn(3, 6, 5)
    inputs.context.mask[:, 1] = False
    prepared, x = head.prepare(inputs), noise
    for k in range(5):
        x = x + head.step(prepared, x, torch.full((3,), k / 5)) / 5
    sampled = head.sample(inputs, noise, steps=5)
    assert torch.allclose(x, sampled, atol=1e-5)
    assert torch.equal(sampled, head.sample(inputs, noise, plan=head.plan(5)))
    inputs.vlm.hidden[4][0, 7:] = 1e3
    inputs.context.tokens[:, 1] = 1e3
    assert torch.equal(sampled, head.sample(inputs, noise, steps=5))
    layered = Context([inputs.context.tokens.clone() for _ in range(2)], inputs.context.mask)
    again = dataclasses.replace(inputs, context=layered)
    assert torch.allclose(sampled, head.sample(again, noise, steps=5), atol=1e-6)
    layered.tokens[1][:, 0] += 1
    assert not torch.allclose(sampled, head.sample(again, noise, steps=5), atol=1e-6)
    with pytest.raises(UserError, match="context: missing"):
        head.sample(dataclasses.replace(inputs, context=None), noise)


def woken():
    torch.manual_seed(1)
    dims = HeadDims(hidden_size=16, n_layers=2, action_dim=3, horizon=4, state_dim=2, n_embodiments=2)
    head = build(dims, width=16, n_blocks=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mask = torch.ones(2, 5, dtype=torch.bool)
    return head, HeadInputs(
        VLMOutput({2: torch.randn(2, 5, 16)}, mask, {}),
        state=torch.randn(2, 2),
        embodiment=torch.tensor([1, 0]),
    )


HEAD, INPUTS = woken()


@settings(max_examples=25, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=24, max_size=24),
    seen=st.lists(st.booleans(), min_size=4, max_size=4),
    fill=st.sampled_from([7.0, float("nan"), 1e30]),
)
def test_masked_entries_change_nothing(bits, seen, fill):
    """Neither the loss nor a gradient sees masked actions, their noise or masked state dims."""
    mask, state_mask = torch.tensor(bits).view(2, 4, 3), torch.tensor(seen).view(2, 2)
    generator = torch.Generator().manual_seed(3)
    actions = torch.randn(2, 4, 3, generator=generator)
    noise, time = torch.randn(2, 2, 4, 3, generator=generator), torch.rand(2, 2, generator=generator)
    results = []
    for dirty in (False, True):
        a = torch.where(mask, actions, fill) if dirty else actions
        n = torch.where(mask[:, None], noise, fill) if dirty else noise
        state = torch.where(state_mask, INPUTS.state, fill) if dirty else INPUTS.state
        a = a.clone().requires_grad_()
        HEAD.zero_grad()
        inputs = dataclasses.replace(INPUTS, state=state, state_mask=state_mask)
        loss = HEAD(inputs, a, mask, noise=n, time=time)["action_loss"]
        loss.backward()
        assert loss.isfinite()
        assert (a.grad[~mask] == 0).all()
        results.append((loss.detach(), [p.grad.clone() for p in HEAD.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(x, y) for x, y in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overfits_without_a_dead_parameter(observe, targets, dtype):
    head = build(dataclasses.replace(DIMS, context_dim=12)).to(dtype)
    inputs = observe(context=True, dtype=dtype)
    draws = {"noise": torch.randn(3, 4, 6, 5), "time": torch.rand(3, 4)}
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = head(inputs, *targets, **draws)["action_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_time_and_targets_stay_fp32(observe, targets, kind):
    head, inputs = build(), observe(dtype=torch.bfloat16)
    if kind == "bf16":
        head = head.to(torch.bfloat16)
    seen = []
    head.time.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    time, noise = ((torch.arange(1000) + 0.5) / 1000).expand(3, -1), torch.randn(3, 1000, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"), torch.no_grad():
        loss = head(inputs, *targets, noise=noise, time=time)["action_loss"]
        sampled = head.sample(inputs, noise[:, 0])
    assert seen[0].unique().numel() == 1000
    assert sampled.dtype == loss.dtype == torch.float32
    assert sampled.isfinite().all()
    actions, mask = targets  # the cold head predicts 0: the loss shows the exact fp32 target
    square = (actions[:, None] - noise).square()
    assert loss.item() == pytest.approx(square[mask[:, None].expand_as(square)].mean().item(), rel=1e-5)


def test_compiles_without_graph_breaks(observe, targets):
    head, inputs = build(n_blocks=2), observe()
    assert torch._dynamo.explain(head.sample)(inputs, torch.randn(3, 6, 5)).graph_break_count == 0
    assert torch._dynamo.explain(head.forward)(inputs, *targets).graph_break_count == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": None}, "width: size 'custom'"),
        ({"size": "B"}, "width: size 'B' sets"),
        ({"size": "XL"}, "size: 'XL'"),
        ({"n_heads": 5}, "n_heads: width 32"),
        ({"n_blocks": 0}, "n_blocks: must be >= 1, got 0"),
        ({"layer": 5}, "layer: 5 must be between -5"),
        ({"layer": -6}, "layer: -6"),
        ({"steps": 0}, "steps: must be >= 1, got 0"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


def test_full_size_on_the_meta_device():
    dims = HeadDims(hidden_size=2048, n_layers=36, action_dim=7, horizon=8, state_dim=8)
    counts = {}
    for size, width in (("B", 768), ("L", 1536)):
        with torch.device("meta"):
            head = GR00TFlow.build(GR00TFlowConfig(size=size), dims)
        counts[size] = sum(p.numel() for p in head.parameters())
        assert len(head.blocks) == 16
        # Matrices of W x W: query/keys/values/out 4 (2 and 2 H W where they cross), ff 8, AdaLN 2.
        blocks = 8 * (14 * width**2 + 12 * width**2 + 2 * 2048 * width)
        assert counts[size] == pytest.approx(blocks, rel=0.07)
    assert counts == {"B": 154_426_631, "L": 560_230_919}
