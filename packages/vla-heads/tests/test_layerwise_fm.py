import dataclasses

import pytest
import torch
from torch import nn
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ActionHead, Context, HeadDims, HeadInputs, VLMOutput
from vla_heads import LayerwiseFM, LayerwiseFMConfig

TINY = LayerwiseFMConfig(n_future_tokens=2, state_hidden=16, decoder_hidden=16, repeated_diffusion_steps=2)
MODES = pytest.mark.parametrize("concat", [False, True], ids=["self+cross", "concat"])


def build(dims, **changes):
    return LayerwiseFM.build(dataclasses.replace(TINY, **changes), dims)


def rows_of(inputs, rows):
    vlm = inputs.vlm
    return HeadInputs(
        VLMOutput({k: v[rows] for k, v in vlm.hidden.items()}, vlm.mask[rows], {}),
        None if inputs.context is None else Context(inputs.context.tokens[rows], inputs.context.mask[rows]),
        inputs.state[rows],
    )


def test_is_an_action_head(dims):
    assert isinstance(build(dims), ActionHead)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (1, 2, 3, 4)),
        ({"n_blocks": 2}, (3, 4)),
        ({"max_blocks": 3}, (2, 3, 4)),
        ({"max_blocks": 16}, (1, 2, 3, 4)),
        ({"max_blocks": 3, "n_blocks": 4}, (1, 2, 3, 4)),
        ({"n_blocks": 2, "vl_layer_selection": "first"}, (1, 2)),
    ],
)
def test_requests_only_the_layers_it_reads(dims, make_inputs, targets, changes, layers):
    head = build(dims, **changes)
    assert head.request("train").layers == head.request("sample").layers == layers
    inputs = make_inputs()
    kept = {i: inputs.vlm.hidden[i] for i in layers}
    only = dataclasses.replace(inputs, vlm=dataclasses.replace(inputs.vlm, hidden=kept))
    assert head(only, *targets)["action_loss"].isfinite()


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_vl_hidden_is_a_layer_norm_without_parameters(dims, make_inputs, wake, normalize):
    head, inputs = wake(build(dims, normalize_vl_hidden=normalize)), make_inputs()
    noise = torch.randn(3, 6, 5)
    scaled = {layer: 50 * x + 3 for layer, x in inputs.vlm.hidden.items()}
    moved = dataclasses.replace(inputs, vlm=dataclasses.replace(inputs.vlm, hidden=scaled))
    before, after = head.sample(inputs, noise), head.sample(moved, noise)
    assert torch.allclose(before, after, atol=1e-4) == normalize
    if normalize:
        plain = build(dims, normalize_vl_hidden=False)
        assert head.state_dict().keys() == plain.state_dict().keys()
        normed = {layer: torch.nn.functional.layer_norm(x, x.shape[-1:]) for layer, x in scaled.items()}
        plain.load_state_dict(head.state_dict())
        by_hand = dataclasses.replace(inputs, vlm=dataclasses.replace(inputs.vlm, hidden=normed))
        torch.testing.assert_close(plain.eval().sample(by_hand, noise), head.eval().sample(moved, noise))


@MODES
def test_explicit_draws_reproduce(dims, make_inputs, targets, wake, concat):
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs()
    noise, time = torch.randn(3, 4, 6, 5), torch.rand(3, 4)
    first = head(inputs, *targets, noise=noise, time=time)["action_loss"]
    again = head(inputs, *targets, noise=noise.flatten(0, 1), time=time.flatten())["action_loss"]
    assert torch.equal(first, again)
    torch.manual_seed(5)
    drawn = head(inputs, *targets)["action_loss"]
    torch.manual_seed(5)
    assert torch.equal(drawn, head(inputs, *targets)["action_loss"])
    assert not torch.equal(drawn, head(inputs, *targets)["action_loss"])


@MODES
def test_repeats_equal_separate_passes(dims, make_inputs, targets, wake, concat):
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs()
    noise, time = torch.randn(3, 4, 6, 5), torch.rand(3, 4)
    together = head(inputs, *targets, noise=noise, time=time)["action_loss"]
    apart = [head(inputs, *targets, noise=noise[:, r], time=time[:, r])["action_loss"] for r in range(4)]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


@MODES
def test_batched_answer_equals_solo(dims, make_inputs, wake, concat):
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs()
    noise = torch.randn(3, 6, 5)
    batched = head.sample(inputs, noise)
    for row in range(3):
        solo = head.sample(rows_of(inputs, slice(row, row + 1)), noise[row : row + 1])
        assert torch.allclose(batched[row : row + 1], solo, atol=1e-5)


@MODES
def test_sample_is_euler_over_step_and_padding_is_ignored(dims, make_inputs, wake, concat):
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs()
    noise = torch.randn(3, 6, 5)
    prepared, x = head.prepare(inputs), noise
    for k in range(5):
        x = x + head.step(prepared, x, torch.full((3,), k / 5)) / 5
    sampled = head.sample(inputs, noise, steps=5)
    assert torch.allclose(x, sampled, atol=1e-5)
    assert torch.equal(sampled, head.sample(inputs, noise, plan=head.plan(5)))
    for hidden in inputs.vlm.hidden.values():
        hidden[0, 7:] = 1e3
    assert torch.equal(sampled, head.sample(inputs, noise, steps=5))


@MODES
@pytest.mark.parametrize("block", [0, 3])
def test_tokens_interact_in_every_block(dims, make_inputs, wake, concat, block):
    """With the other blocks' attention cut, the state and other steps still reach each action."""
    head, inputs = wake(build(dims, use_concat_cross_context=concat, n_future_tokens=0)), make_inputs()
    for i, other in enumerate(head.blocks):
        if i != block:
            nn.init.zeros_(other.out.weight)
    x, t = torch.randn(3, 6, 5), torch.full((3,), 0.5)
    base = head.step(head.prepare(inputs), x, t)
    moved = dataclasses.replace(inputs, state=inputs.state + 1)
    assert not torch.allclose(base, head.step(head.prepare(moved), x, t), atol=1e-6)
    x2 = x.clone()
    x2[:, 0] += 1
    assert not torch.allclose(base[:, 1:], head.step(head.prepare(inputs), x2, t)[:, 1:], atol=1e-6)


@MODES
@pytest.mark.parametrize("layer", [1, 4])
def test_every_layer_and_context_token_matters(dims, make_inputs, wake, concat, layer):
    dims = dataclasses.replace(dims, context_dim=12)
    head, inputs = wake(build(dims, use_concat_cross_context=concat)), make_inputs(context=True)
    noise = torch.randn(3, 6, 5)
    base = head.sample(inputs, noise)
    inputs.vlm.hidden[layer][:, 0] += torch.randn(32)
    moved = head.sample(inputs, noise)
    assert not torch.allclose(base, moved, atol=1e-6)
    inputs.context.tokens[:, 0] += torch.randn(12)
    assert not torch.allclose(moved, head.sample(inputs, noise), atol=1e-6)


def test_context_mask_and_per_layer_context(dims, make_inputs, wake):
    dims = dataclasses.replace(dims, context_dim=12)
    head, inputs, noise = wake(build(dims)), make_inputs(context=True), torch.randn(3, 6, 5)
    inputs.context.mask[:, 1] = False
    base = head.sample(inputs, noise)
    per_layer = [inputs.context.tokens.clone() for _ in range(4)]
    inputs.context.tokens[:, 1] = 1e3
    assert torch.equal(base, head.sample(inputs, noise))
    layered = dataclasses.replace(inputs, context=Context(per_layer, inputs.context.mask))
    assert torch.allclose(base, head.sample(layered, noise), atol=1e-6)
    per_layer[3][:, 0] += 1
    assert not torch.allclose(base, head.sample(layered, noise), atol=1e-6)
    layered.context.tokens = per_layer[:3]
    with pytest.raises(UserError, match="context: tokens for 3 layers"):
        head.sample(layered, noise)


def test_row_without_context_is_finite(dims, make_inputs, targets, wake):
    head, inputs = wake(build(dims)), make_inputs()
    inputs.vlm.mask[1] = False
    assert head.sample(inputs, torch.randn(3, 6, 5)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_blocks": 5}, "n_blocks: 5"),
        ({"n_heads": 5}, "n_heads: width 32"),
        ({"steps": 0}, "steps: must be >= 1, got 0"),
        ({"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0"),
        ({"vl_layer_selection": "middle"}, "vl_layer_selection: 'middle'"),
        ({"max_blocks": 0}, "max_blocks: must be >= 1, got 0"),
    ],
)
def test_bad_config(dims, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(dims, **changes)


def test_bad_inputs_name_the_field(dims, make_inputs, targets):
    head, inputs = build(dims), make_inputs()
    actions, mask = targets
    with pytest.raises(UserError, match="state: missing"):
        head(dataclasses.replace(inputs, state=None), actions, mask)
    with pytest.raises(UserError, match="state: got 6 dims"):
        head(dataclasses.replace(inputs, state=torch.zeros(3, 6)), actions, mask)
    with pytest.raises(UserError, match="actions: shape"):
        head(inputs, actions[:, :5], mask)
    with pytest.raises(UserError, match="action_mask: dtype"):
        head(inputs, actions, mask.float())
    with pytest.raises(UserError, match="noise: shape"):
        head.sample(inputs, torch.zeros(3, 5, 5))
    with pytest.raises(UserError, match="steps: 0"):
        head.sample(inputs, actions, steps=0)
    with pytest.raises(UserError, match="context: unexpected"):
        head(make_inputs(context=True), actions, mask)
    stateless = build(dataclasses.replace(dims, state_dim=0))
    with pytest.raises(UserError, match="state: got 7 dims"):
        stateless(inputs, actions, mask)


def test_full_size_on_the_meta_device():
    dims = HeadDims(hidden_size=2048, n_layers=36, action_dim=7, horizon=16, state_dim=8)
    counts = {}
    for concat in (False, True):
        with torch.device("meta"):
            head = LayerwiseFM.build(LayerwiseFMConfig(use_concat_cross_context=concat), dims)
        counts[concat] = sum(p.numel() for p in head.parameters())
        per_block = 16 if concat else 18  # matrices of W x W: qkv, out, context kv, (q, out), ff 8, AdaLN 2
        assert counts[concat] == pytest.approx(36 * per_block * 2048**2, rel=0.015)
    assert counts == {False: 2_753_537_031, True: 2_451_252_231}
