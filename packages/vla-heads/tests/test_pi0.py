"""The action expert of pi0 and pi0.5: masks, time, draws, padding, cost, real-time chunking, mistakes."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import (
    ActionHead,
    Constraint,
    HeadDims,
    HeadInputs,
    KVDims,
    VLMOutput,
    VLMRequest,
)
from vla_core.registry import load
from vla_heads import PI0Config, PI0Head

B, S, T, A, D, N, W, F = 3, 11, 6, 5, 7, 2, 32, 48
KV = KVDims(n_heads=4, n_kv_heads=1, head_dim=8, rope_theta=10_000.0)
DIMS = HeadDims(hidden_size=16, n_layers=N, action_dim=A, horizon=T, state_dim=D, kv=KV)
VARIANTS = ("pi0", "pi05")


@pytest.fixture(params=VARIANTS)
def make(request, wake):
    def build(dims=DIMS, **changes):
        config = {"width": W, "mlp_width": F, "max_action_dim": 8, "max_state_dim": 8, **changes}
        return wake(PI0Head.build(PI0Config(request.param, **config), dims)).eval()

    return build


def observation(rows=B, dtype=torch.float32):
    mask = torch.ones(rows, S, dtype=torch.bool)
    mask[0, S - 4 :] = False
    kv = {i: tuple(torch.randn(rows, 1, S, 8, dtype=dtype) for _ in "kv") for i in range(1, N + 1)}
    return HeadInputs(VLMOutput({}, mask, {}, kv=kv), state=torch.randn(rows, D))


def rows_of(inputs, rows):
    kv = {i: (k[rows], v[rows]) for i, (k, v) in inputs.vlm.kv.items()}
    return HeadInputs(VLMOutput({}, inputs.vlm.mask[rows], {}, kv=kv), state=inputs.state[rows])


def flops(fn):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def test_is_an_action_head_that_asks_for_every_layer(make):
    head = make()
    assert isinstance(head, ActionHead)
    assert load("vla.heads", "pi0") is PI0Head
    assert head.request("train") == head.request("sample") == VLMRequest(kv=(1, 2))


def test_state_sees_no_action_and_actions_see_everything(make):
    head = make()
    mask = head._mask(torch.ones(1, 2, dtype=torch.bool), None)[0, 0]
    assert mask.shape == (T + head.has_state, 2 + T + head.has_state)
    if head.has_state:
        assert mask[0].tolist() == [True] * 3 + [False] * T
        mask = mask[1:]
    assert mask.all()


def test_what_reaches_an_action(make):
    head, inputs, x = make(), observation(), torch.randn(B, T, A)
    step = lambda inputs, x: head.step(head.prepare(inputs), x, torch.full((B,), 0.3))  # noqa: E731
    plain = step(inputs, x)
    moved = x.clone()
    moved[:, -1] += 1.0
    assert ((step(inputs, moved) - plain).abs().amax(dim=2) > 1e-5).all()  # both directions in time
    other = dataclasses.replace(inputs, state=inputs.state + 1.0)
    assert torch.equal(step(other, x), plain) != head.has_state
    for layer in (1, 2):
        kv = dict(inputs.vlm.kv)
        kv[layer] = tuple(t + 0.5 for t in kv[layer])
        changed = dataclasses.replace(inputs, vlm=dataclasses.replace(inputs.vlm, kv=kv))
        assert not torch.allclose(step(changed, x), plain, atol=1e-4)
    for k, v in inputs.vlm.kv.values():
        k[0, :, S - 4 :], v[0, :, S - 4 :] = 1e3, 1e3  # padding
    assert torch.equal(step(inputs, x), plain)


def test_positions_follow_those_of_the_prefix(make):
    head, inputs = make(), observation()
    prepared = head.prepare(inputs)
    positions = torch.where(inputs.vlm.mask, torch.arange(S), 99)[None].expand(3, -1, -1)
    told = dataclasses.replace(inputs.vlm, position_ids=positions)
    same = head.prepare(dataclasses.replace(inputs, vlm=told))
    assert torch.equal(same.rotation[0], prepared.rotation[0])
    assert prepared.rotation[0][0, 0, 0, 0] == pytest.approx(torch.tensor(float(S - 4)).cos().item())
    shifted = dataclasses.replace(inputs.vlm, position_ids=positions + 2)
    further = head.prepare(dataclasses.replace(inputs, vlm=shifted))
    assert torch.equal(further.rotation[1][:, :, :-2], prepared.rotation[1][:, :, 2:])


def test_time_is_drawn_as_published(make):
    head = make()
    level = 1.0 - head._draw_time((200_000,), torch.device("cpu"))
    assert level.min() >= 0.001 - 1e-6
    assert level.max() <= 1
    reference = torch.distributions.Beta(1.5, 1.0).sample((200_000,)) * 0.999 + 0.001
    for q in (0.1, 0.5, 0.9):
        assert level.quantile(q).item() == pytest.approx(reference.quantile(q).item(), abs=5e-3)


def test_draws_reproduce_and_repeats_equal_separate_passes(make):
    head, inputs = make(), observation()
    actions, mask = torch.randn(B, T, A), torch.ones(B, T, A, dtype=torch.bool)
    noise, time = torch.randn(B, 4, T, A), torch.rand(B, 4)
    together = head(inputs, actions, mask, noise=noise, time=time)["action_loss"]
    flat = head(inputs, actions, mask, noise=noise.flatten(0, 1), time=time.flatten())["action_loss"]
    assert torch.equal(together, flat)
    apart = [head(inputs, actions, mask, noise[:, r], time[:, r])["action_loss"] for r in range(4)]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)
    torch.manual_seed(5)
    drawn = head(inputs, actions, mask)["action_loss"]
    torch.manual_seed(5)
    assert torch.equal(drawn, head(inputs, actions, mask)["action_loss"])


def test_masked_entries_reach_neither_loss_nor_gradient(make):
    head, inputs = make(), observation()
    mask = torch.ones(B, T, A, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, :, 3:] = False
    mask[2] = False
    actions, noise, time = torch.randn(B, T, A), torch.randn(B, 1, T, A), torch.rand(B, 1)
    loss = head(inputs, actions, mask, noise, time)["action_loss"]
    poisoned = torch.where(mask, actions, float("nan"))
    again = head(inputs, poisoned, mask, torch.where(mask[:, None], noise, 7.0), time)["action_loss"]
    assert torch.equal(loss, again)
    again.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_batched_answer_equals_solo_and_padded_dims_stay_zero(make):
    head, inputs, noise = make(), observation(), torch.randn(B, T, A)
    batched = head.sample(inputs, noise)
    for row in range(B):
        solo = head.sample(rows_of(inputs, slice(row, row + 1)), noise[row : row + 1])
        assert torch.allclose(batched[row : row + 1], solo, atol=1e-5)
    dims = torch.ones(B, A, dtype=torch.bool)
    dims[1, 3:] = False
    sampled = head.sample(dataclasses.replace(inputs, action_dims=dims), noise)
    assert (sampled[1, :, 3:] == 0).all()
    assert torch.allclose(sampled[0], batched[0], atol=1e-5)


def test_dims_up_to_the_networks_are_zeros(make):
    wide = make()
    narrow = make(max_action_dim=None, max_state_dim=None)
    weights = {
        name: value[tuple(slice(0, n) for n in narrow.state_dict()[name].shape)]
        for name, value in wide.state_dict().items()
    }
    narrow.load_state_dict(weights)
    inputs, noise = observation(), torch.randn(B, T, A)
    assert torch.allclose(wide.sample(inputs, noise), narrow.sample(inputs, noise), atol=1e-5)


def test_spare_dims_hold_noise_that_reaches_no_loss(make):
    """With ``spare_dims: noise`` what the robot lacks is integrated like the rest, then cut off."""
    head, inputs = make(spare_dims="noise"), observation()
    assert (head.traits.noise_dim, make().traits.noise_dim) == (8, None)
    noise = torch.randn(B, T, 8)
    sampled = head.sample(inputs, noise)
    assert sampled.shape == (B, T, A)
    assert not torch.allclose(sampled, make().sample(inputs, noise[..., :A]), atol=1e-3)
    # As a robot of 8 dims whose last three nobody looks at.
    whole = make(dataclasses.replace(DIMS, action_dim=8))
    whole.load_state_dict(head.state_dict())
    assert torch.allclose(sampled, whole.sample(inputs, noise)[..., :A], atol=1e-6)
    dims = torch.ones(B, A, dtype=torch.bool)
    dims[1, 3:] = False  # a row of a smaller robot
    smaller = head.sample(dataclasses.replace(inputs, action_dims=dims), noise)
    assert torch.equal(smaller, torch.where(dims[:, None], sampled, 0.0))
    mask = dims[:, None].expand(B, T, A)
    actions, draws, time = torch.randn(B, T, A), torch.randn(B, 2, T, 8), torch.rand(B, 2)
    loss = head(inputs, actions, mask, draws, time)["action_loss"]
    full = torch.nn.functional.pad(torch.where(mask, actions, 0.0), (0, 3))
    every = torch.ones_like(full, dtype=torch.bool)
    t = time[:, :, None, None]
    x = (1 - t) * draws + t * full[:, None]
    prepared = head.prepare(inputs).repeat(2)
    velocity = head.step(prepared, x.flatten(0, 1), time.flatten()).view_as(x)
    error = (velocity - (full[:, None] - draws)).square()[..., :A][mask[:, None].expand(B, 2, T, A)]
    assert loss.item() == pytest.approx(error.mean().item(), rel=1e-5)
    assert head(inputs, actions, mask, draws[:, :, :, :], time)["action_loss"] == loss
    assert whole(inputs, full, every, draws, time)["action_loss"].item() != pytest.approx(
        loss.item(), rel=1e-3
    )
    with pytest.raises(UserError, match=r"noise: shape \[3, 6, 5\] must be \[B, 6, 8\]"):
        head.sample(inputs, noise[..., :A])
    with pytest.raises(ConfigError, match="spare_dims: 'nought' must be"):
        make(spare_dims="nought")


@pytest.mark.parametrize("changes", [{}, {"rtc": "training_time", "rtc_max_delay": 3}])
def test_real_time_chunking_leaves_spare_dims_free(make, changes):
    """A constraint speaks of the robot's dims: the spare ones are not drawn towards zero."""
    head, inputs, noise = make(spare_dims="noise", **changes), observation(), torch.randn(B, T, 8)
    weights = torch.zeros(B, T)
    weights[0, :2] = 1.0
    bound = Constraint(torch.randn(B, T, A), weights, 2)
    assert head._bound(None, noise).tolist() == [[True] * A + [False] * 3] * B
    free = head.sample(inputs, noise, steps=5)
    with torch.inference_mode():
        got = head.sample(inputs, noise, steps=5, constraint=bound)
    assert torch.equal(got[0, :2], bound.actions[0, :2])
    assert torch.allclose(got[1:], free[1:], atol=1e-5)
    assert ((got[0, 2:] - free[0, 2:]).abs() > 1e-4).any()


def test_gradients_flow_into_the_backbone_and_training_lowers_the_loss():
    for variant in VARIANTS:
        torch.manual_seed(0)
        head, inputs = PI0Head.build(PI0Config(variant, width=W, mlp_width=F), DIMS), observation()
        actions, mask = torch.randn(B, T, A), torch.ones(B, T, A, dtype=torch.bool)
        noise, time = torch.randn(B, 4, T, A), torch.rand(B, 4)
        optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = head(inputs, actions, mask, noise, time)["action_loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx((actions[:, None] - noise).square().mean().item(), rel=1e-5)
        assert losses[-1] < 0.5 * losses[0]
        keys = inputs.vlm.kv[1][0].requires_grad_()
        head(inputs, actions, mask, noise, time)["action_loss"].backward()
        assert keys.grad is not None
        assert keys.grad.abs().max() > 0


def test_denoise_steps_share_the_prefix(make):
    """Nothing is projected from the prefix: cost is that of the own tokens, step for step."""
    head, inputs, noise = make(), rows_of(observation(), slice(1, 2)), torch.randn(1, T, A)
    cost = {steps: flops(lambda s=steps: head.sample(inputs, noise, steps=s)) for steps in (1, 2, 4)}
    per_step = cost[2] - cost[1]
    assert cost[4] - cost[2] == 2 * per_step
    length, n, m, d = T + head.has_state, KV.n_heads, KV.n_kv_heads, KV.head_dim
    matrices = 2 * W * d * n + 2 * W * d * m + 3 * W * F  # q, o; k, v; gate, up, down
    layers = N * (2 * length * matrices + 4 * n * d * length * (S + length))
    rest = 2 * T * W * 2 * 8  # in and out
    rest += 2 * T * (2 * W * W + W * W) if head.has_state else 2 * 2 * W * W + (2 * N + 1) * 2 * 3 * W * W
    assert per_step == layers + rest
    assert cost[1] - per_step == (2 * 8 * W if head.has_state else 0)  # the state token, once


def test_full_size_on_the_meta_device():
    dims = HeadDims(2048, 18, action_dim=7, horizon=50, state_dim=8, kv=KVDims(8, 1, 256, 10_000.0))
    counts = {}
    for variant in VARIANTS:
        with torch.device("meta"):
            head = PI0Head.build(PI0Config(variant), dims)
            kv = {i: (torch.randn(2, 1, 20, 256), torch.randn(2, 1, 20, 256)) for i in range(1, 19)}
            inputs = HeadInputs(
                VLMOutput({}, torch.ones(2, 20, dtype=torch.bool), {}, kv=kv), state=torch.randn(2, 8)
            )
            actions = torch.randn(2, 50, 7)
            mask = torch.ones(2, 50, 7, dtype=torch.bool)
            head(inputs, actions, mask)["action_loss"].backward()  # waits for no value
            assert head.sample(inputs, actions, steps=2).shape == (2, 50, 7)
        counts[variant] = sum(p.numel() for p in head.parameters())
    assert counts == {"pi0": 314_713_120, "pi05": 430_098_464}


@pytest.mark.parametrize(
    "changes", [{}, {"rtc": "training_time", "rtc_max_delay": 3}], ids=["guidance", "trained"]
)
def test_real_time_chunking(make, changes):
    head, inputs, noise = make(**changes), observation(), torch.randn(B, T, A)
    weights = torch.zeros(B, T)
    weights[0, :2] = weights[2, :3] = 1.0
    bound = Constraint(torch.randn(B, T, A), weights, 3)
    bound.actions[1] = float("nan")  # without weight nothing is read
    free = head.sample(inputs, noise, steps=5)
    with torch.inference_mode():
        got = head.sample(inputs, noise, steps=5, constraint=bound)
    assert torch.equal(got[0, :2], bound.actions[0, :2])
    assert torch.equal(got[2, :3], bound.actions[2, :3])
    assert torch.allclose(got[1], free[1], atol=1e-5)
    assert ((got[0, 2:] - free[0, 2:]).abs() > 1e-4).any()  # the rest knows of them
    if changes:
        actions, mask = torch.randn(B, T, A), torch.ones(B, T, A, dtype=torch.bool)
        time, delay = torch.rand(B, 2), torch.tensor([[0, 3], [1, 2], [3, 3]])
        noise = torch.randn(B, 2, T, A)
        loss = head(inputs, actions, mask, noise, time, delay)["action_loss"]
        noise[0, 1, :3] = 5.0  # under a clean step the noise is not read
        assert torch.equal(loss, head(inputs, actions, mask, noise, time, delay)["action_loss"])
        with pytest.raises(UserError, match="4 frozen steps"):
            head.sample(inputs, noise[:, 0], constraint=dataclasses.replace(bound, n_frozen=4))


def test_bf16_and_a_robot_without_state(make):
    head = make(dataclasses.replace(DIMS, state_dim=0)).bfloat16()
    inputs = dataclasses.replace(observation(dtype=torch.bfloat16), state=None)
    mask = torch.ones(B, T, A, dtype=torch.bool)
    loss = head(inputs, torch.randn(B, T, A), mask)["action_loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.sample(inputs, torch.randn(B, T, A)).dtype == torch.float32


def test_compiles_without_graph_breaks(make):
    head, noise = make(), torch.randn(B, T, A)
    assert torch._dynamo.explain(head.sample)(observation(), noise).graph_break_count == 0


@pytest.mark.parametrize(
    ("dims", "changes", "message"),
    [
        ({"kv": None}, {}, "head: pi0 joins the attention of the backbone, and this one"),
        ({"context_dim": 4}, {}, "head: pi0 cannot read the head context"),
        ({}, {"variant": "pi1"}, "variant: 'pi1'"),
        ({}, {"max_action_dim": 4}, "max_action_dim: 4 is less than the robot's 5"),
        ({}, {"max_state_dim": 4}, "max_state_dim: 4 is less than the robot's 7"),
        ({}, {"width": 31}, "width: 31"),
        ({}, {"steps": 0}, "steps: must be >= 1, got 0"),
        ({}, {"time_offset": 1.0}, r"time_offset: must be in \[0, 1\), got 1.0"),
        ({}, {"min_period": 5.0}, "min_period: 5.0"),
        ({}, {"rtc": "magic"}, "rtc: 'magic'"),
        ({}, {"rtc": "training_time"}, "needs rtc_max_delay"),
        ({}, {"rtc_max_delay": T}, "rtc_max_delay: 6"),
        ({}, {"rtc_max_guidance": 0.0}, "rtc_max_guidance: must be > 0, got 0.0"),
    ],
)
def test_bad_config(dims, changes, message):
    with pytest.raises(ConfigError, match=message):
        PI0Head.build(PI0Config(**changes), dataclasses.replace(DIMS, **dims))


def test_bad_inputs_name_the_field(make):
    head, inputs, noise = make(), observation(), torch.randn(B, T, A)
    del inputs.vlm.kv[2]
    with pytest.raises(UserError, match=r"vlm.kv: layers \[2\] are missing"):
        head.sample(inputs, noise)
    with pytest.raises(UserError, match="noise: shape"):
        head.sample(observation(), noise[:, 1:])
    with pytest.raises(UserError, match="steps: 0"):
        head.sample(observation(), noise, steps=0)
