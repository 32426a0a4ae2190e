"""Real-time chunking in the flow-matching heads: by guidance, and as trained."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import Constraint, HeadDims, HeadInputs
from vla_heads import GR00TFlow, GR00TFlowConfig, LayerwiseFM, LayerwiseFMConfig
from vla_heads.sampling import guidance_weight

SMALL = {"n_future_tokens": 2, "state_hidden": 16, "decoder_hidden": 16, "n_blocks": 3}
HEADS = {
    "groot": (GR00TFlow, GR00TFlowConfig(size="custom", width=32, n_heads=2, output_width=24, **SMALL)),
    "layerwise": (LayerwiseFM, LayerwiseFMConfig(n_heads=2, **SMALL)),
    "concat": (LayerwiseFM, LayerwiseFMConfig(n_heads=2, use_concat_cross_context=True, **SMALL)),
}
DIMS = HeadDims(hidden_size=32, n_layers=4, action_dim=5, horizon=6, state_dim=7, n_embodiments=3)
TRAINED = {"rtc": "training_time", "rtc_max_delay": 3}


@pytest.fixture(params=list(HEADS))
def make(request, wake):
    cls, config = HEADS[request.param]
    return lambda **changes: wake(cls.build(dataclasses.replace(config, **changes), DIMS)).eval()


@pytest.fixture
def inputs(make_inputs) -> HeadInputs:
    return dataclasses.replace(make_inputs(), embodiment=torch.tensor([2, 0, 1]))


def constraint(*delays: int, soft: float = 0.5) -> Constraint:
    """Random earlier chunks; each row has its delay, two soft steps after it; -1: no constraint."""
    weights = torch.zeros(len(delays), 6)
    for row, delay in enumerate(delays):
        if delay >= 0:
            weights[row, :delay] = 1.0
            weights[row, delay : delay + 2] = soft
    return Constraint(torch.randn(len(delays), 6, 5), weights, max(delays))


def test_the_longest_delay_is_what_the_head_was_trained_for(make):
    assert make(**TRAINED).traits.longest_delay == 3
    assert make(steps=7).traits.steps == 7
    assert make(rtc_max_delay=3).traits.longest_delay is None  # guided: as it was trained does not matter


@pytest.mark.parametrize("changes", [{}, TRAINED], ids=["guidance", "training_time"])
def test_frozen_steps_are_kept_and_free_rows_are_untouched(make, inputs, changes):
    head, noise = make(**changes), torch.randn(3, 6, 5)
    free = head.sample(inputs, noise, steps=5)
    bound = constraint(2, -1, 3)
    bound.actions[1] = float("nan")  # without weight nothing is read
    got = head.sample(inputs, noise, steps=5, constraint=bound)
    assert torch.equal(got[0, :2], bound.actions[0, :2])
    assert torch.equal(got[2, :3], bound.actions[2, :3])
    assert torch.allclose(got[1], free[1], atol=1e-5)
    assert ((got[0, 2:] - free[0, 2:]).abs() > 1e-4).any()  # the rest knows of them
    with torch.inference_mode():
        again = head.sample(inputs, noise, steps=5, constraint=bound)
        planned = head.sample(inputs, noise, constraint=bound, plan=head.plan(5))
    assert torch.allclose(again, got, atol=1e-5)
    assert torch.allclose(planned, got, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, TRAINED], ids=["guidance", "training_time"])
def test_delay_zero_is_unconstrained(make, inputs, changes):
    head, noise = make(**changes), torch.randn(3, 6, 5)
    got = head.sample(inputs, noise, constraint=constraint(0, 0, -1, soft=0.0))
    assert torch.allclose(got, head.sample(inputs, noise), atol=1e-5)


def test_inputs_made_under_inference_mode_can_be_guided(make, make_inputs):
    head = make()
    with torch.inference_mode():
        seen = dataclasses.replace(
            make_inputs(), embodiment=torch.tensor([2, 0, 1]), action_dims=torch.ones(3, 5, dtype=torch.bool)
        )
        bound, noise = constraint(2, -1, 3), torch.randn(3, 6, 5)
        got = head.sample(seen, noise, constraint=bound)
    assert got[0, :2].tolist() == bound.actions[0, :2].tolist()
    assert all(p.grad is None for p in head.parameters())


def test_guidance_is_the_pseudo_inverse_one(make, inputs):
    """One step of the sampler against the formula written out with a full Jacobian."""
    head, bound = make(), constraint(1, 2, 0)
    noise, n = torch.randn(3, 6, 5), 4
    prepared = head.prepare(inputs)
    x = noise
    for k in range(n):
        t = k / n

        def estimate(point, t=t):
            return point + (1 - t) * head.step(prepared, point, torch.full((3,), t))

        jacobian = torch.autograd.functional.jacobian(estimate, x)
        error = bound.weights[..., None] * (bound.actions - estimate(x))
        pull = torch.einsum("bta,btacsd->csd", error, jacobian)
        beta = 5.0 if t == 0 else min(5.0, (1 - t) / (t * (1 - t) ** 2 / (t**2 + (1 - t) ** 2)))
        x = x + (head.step(prepared, x, torch.full((3,), t)) + beta * pull).detach() / n
    got = head.sample(inputs, noise, steps=n, constraint=bound)
    expected = torch.where((bound.weights >= 1)[..., None], bound.actions, x)
    assert torch.allclose(got, expected, atol=1e-4)


def test_guidance_draws_the_overlap_to_the_earlier_chunk(make, inputs):
    head, noise, bound = make(), torch.randn(3, 6, 5), constraint(2, 2, 2)
    free = head.sample(inputs, noise, steps=20)
    got = head.sample(inputs, noise, steps=20, constraint=bound)
    soft = slice(2, 4)
    before = (free - bound.actions)[:, soft].abs().mean()
    assert (got - bound.actions)[:, soft].abs().mean() < 0.5 * before


def test_guidance_weight():
    assert guidance_weight(0.0, 5.0) == guidance_weight(1.0, 5.0) == 5.0
    assert guidance_weight(0.5, 5.0) == 2.0  # r^2 = 1/2, so (1 - t) / (t r^2) = 2
    assert guidance_weight(0.5, 1.0) == 1.0


def test_cost(inputs):
    cls, config = HEADS["layerwise"]
    flops = {}
    for rtc in ("guidance", "training_time"):
        head = cls.build(dataclasses.replace(config, rtc=rtc, rtc_max_delay=3), DIMS).eval()
        for bound in (None, constraint(2, 2, 2)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                head.sample(inputs, torch.randn(3, 6, 5), steps=32, constraint=bound)
            flops[rtc, bound is None] = counter.get_total_flops()
    assert flops["training_time", False] < 1.1 * flops["training_time", True]
    assert flops["guidance", False] < 2.5 * flops["guidance", True]


def test_frozen_steps_enter_clean_at_time_one(make, inputs, targets):
    """Neither the noise of a frozen step nor its own prediction counts, and its time is 1."""
    head, (actions, mask) = make(rtc_max_delay=3), targets
    noise, time = torch.randn(3, 2, 6, 5), torch.rand(3, 2)
    delay = torch.tensor([[0, 3], [1, 2], [3, 3]])
    loss = head(inputs, actions, mask, noise, time, delay=delay)["action_loss"]
    frozen = torch.arange(6) < delay[..., None]
    other = torch.where(frozen[..., None], 1e3, noise)
    assert torch.equal(loss, head(inputs, actions, mask, other, time, delay=delay)["action_loss"])
    x, target = (1 - time)[..., None, None] * noise + time[..., None, None] * actions[:, None], None
    x = torch.where(frozen[..., None], actions[:, None], x)
    total, count = 0.0, 0
    for row in range(3):
        for repeat in range(2):
            # A pass of its own: per-step times, through the sampler's way of saying them.
            d = int(delay[row, repeat])
            bound = Constraint(actions, (torch.arange(6) < d).float().expand(3, 6), d)
            clean = head._clean()
            bucket = (time[:, repeat : repeat + 1] * 1000).long()
            condition = head.condition(bucket).freeze(bound.frozen[:, None], clean)
            valid = mask.any(-1)
            seen = torch.cat([valid.new_ones(3, 3), valid], 1)[:, None, None, :]
            velocity = head._velocity(head.prepare(inputs), x_of(x, mask, repeat), condition, seen)
            target = actions - noise[:, repeat]
            keep = mask[row] & ~frozen[row, repeat, :, None]
            total += ((velocity[row, 0] - target[row])[keep] ** 2).sum()
            count += int(keep.sum())
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-4)


def x_of(x: torch.Tensor, mask: torch.Tensor, repeat: int) -> torch.Tensor:
    return torch.where(mask[:, None], x[:, repeat : repeat + 1], 0.0)


def test_delays_are_drawn_while_training_alone(make, inputs, targets):
    head = make(rtc_max_delay=3, repeated_diffusion_steps=64)
    seen = []
    original = head._velocity
    head._velocity = lambda *args: seen.append(args[2].frozen) or original(*args)
    head(inputs, *targets)
    assert seen.pop() is None  # validation compares with runs without simulated delays
    head.train()
    head(inputs, *targets)
    counts = seen.pop().sum(-1)
    assert counts.shape == (3, 64)
    assert counts.unique().tolist() == [0, 1, 2, 3]
    plain = make().train()
    plain._velocity = lambda *args: seen.append(args[2].frozen) or type(plain)._velocity(plain, *args)
    plain(inputs, *targets)
    assert seen == [None]


def test_a_head_trained_for_it_continues_from_the_prefix(make_inputs):
    """Two chunks are equally good; only the prefix tells which: the trained head follows it."""
    torch.manual_seed(0)
    cls, config = HEADS["groot"]
    dims = dataclasses.replace(DIMS, action_dim=1, state_dim=0, n_embodiments=1)
    head = cls.build(dataclasses.replace(config, **TRAINED, repeated_diffusion_steps=8), dims)
    inputs = dataclasses.replace(make_inputs(rows=2), state=None)
    inputs.vlm.hidden[4][1] = inputs.vlm.hidden[4][0]
    inputs.vlm.mask[:] = True
    actions = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 6, 1).contiguous()
    mask = torch.ones(2, 6, 1, dtype=torch.bool)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        head(inputs, actions, mask)["action_loss"].backward()
        optimizer.step()
    head.eval()
    bound = Constraint(actions, (torch.arange(6) < 2).float().expand(2, 6), 2)
    noise = -actions + 0.3 * torch.randn(2, 6, 1)  # noise that leads to the other one
    free = head.sample(inputs, noise, steps=8)
    got = head.sample(inputs, noise, steps=8, constraint=bound)
    assert (free.mean((1, 2)).sign() == torch.tensor([-1.0, 1.0])).all()
    assert (got - actions).abs().max() < 0.5


def test_padded_dims_are_zero(make, inputs):
    head, noise = make(), torch.randn(3, 6, 5)
    dims = torch.ones(3, 5, dtype=torch.bool)
    dims[1, 3:] = False
    narrow = dataclasses.replace(inputs, action_dims=dims)
    full, got = head.sample(inputs, noise), head.sample(narrow, noise)
    assert torch.allclose(got[[0, 2]], full[[0, 2]], atol=1e-6)
    assert (got[1, :, 3:] == 0).all()
    dirty = torch.where(dims[:, None], noise, 1e3)
    assert torch.equal(head.sample(narrow, dirty), got)
    bound = constraint(1, 2, -1)
    bound.actions[1, :, 3:] = 0
    guided = head.sample(narrow, dirty, constraint=bound)
    assert guided.isfinite().all()
    assert (guided[1, :, 3:] == 0).all()


def test_bad_input(make, inputs):
    cls, config = HEADS["groot"]
    for changes, message in (
        ({"rtc": "training_time"}, "rtc: 'training_time' needs rtc_max_delay"),
        ({"rtc_max_delay": 6}, "rtc_max_delay: 6 must be in 0..5"),
        ({"rtc_max_guidance": 0.0}, "rtc_max_guidance: must be > 0, got 0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            cls.build(dataclasses.replace(config, **changes), DIMS)
    head, noise = make(**TRAINED), torch.randn(3, 6, 5)
    with pytest.raises(UserError, match="constraint: 4 frozen steps, the head was trained for at most 3"):
        head.sample(inputs, noise, constraint=constraint(4, 0, 0))
    with pytest.raises(UserError, match=r"constraint: actions \[2, 6, 5\] and weights \[2, 6\] must be"):
        head.sample(inputs, noise, constraint=constraint(1, 1))


@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_half_precision(make, inputs, kind):
    head, noise, bound = make(rtc_max_delay=3), torch.randn(3, 6, 5), constraint(2, -1, 3)
    if kind == "bf16":
        head = head.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"), torch.inference_mode():
        got = head.sample(inputs, noise, constraint=bound)
        free = head.sample(inputs, noise)
    assert got.dtype == torch.float32
    assert torch.equal(got[0, :2], bound.actions[0, :2])  # not rounded on the way
    assert torch.allclose(got[1], free[1], atol=0.05)
