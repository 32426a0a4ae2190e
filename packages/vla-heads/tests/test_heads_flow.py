import pytest
import torch
from vla_core.errors import UserError
from vla_heads import flow


def test_time_follows_the_beta_distribution():
    time = flow.sample_time((200_000,), torch.device("cpu"), alpha=1.5, s=0.999)
    assert time.dtype == torch.float32
    assert time.min() >= 0
    assert time.max() <= 1
    # E[Beta(1.5, 1)] = 0.6, so E[t] = 1 - 0.6 / 0.999 (up to the clamp).
    assert time.mean().item() == pytest.approx(1 - 0.6 / 0.999, abs=3e-3)
    b = 0.999 * (1 - time)
    reference = torch.distributions.Beta(1.5, 1.0).sample((200_000,))
    for q in (0.1, 0.5, 0.9):
        assert b.quantile(q).item() == pytest.approx(reference.quantile(q).item(), abs=5e-3)


def test_no_bucket_is_lost():
    time = (torch.arange(1000) + 0.5) / 1000
    assert flow.bucket(time, 1000).unique().numel() == 1000
    drawn = flow.sample_time((400_000,), torch.device("cpu"), 1.5, 0.999)
    assert flow.bucket(drawn, 1000).unique().numel() >= 998  # the last few are rare, not rounded away
    assert flow.bucket(time.bfloat16(), 1000).unique().numel() < 600  # what rounding would do
    assert flow.bucket(torch.tensor([0.0, 1.0]), 1000).tolist() == [0, 999]


@pytest.mark.parametrize(("steps", "buckets"), [(1, [0]), (4, [0, 250, 500, 750]), (3, [0, 333, 666])])
def test_grid(steps, buckets):
    assert flow.bucket_grid(steps, 1000, torch.device("cpu")).tolist() == buckets


def test_path_ends_and_stays_fp32():
    actions, noise = torch.randn(2, 4, 3).bfloat16(), torch.randn(2, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x0, velocity = flow.interpolate(actions, noise, torch.zeros(2))
        x1, _ = flow.interpolate(actions, noise, torch.ones(2))
    assert x0.dtype == velocity.dtype == torch.float32
    assert torch.equal(x0, noise)
    assert torch.equal(x1, actions.float())
    assert torch.allclose(x0 + velocity, x1, atol=1e-6)


def test_draws_take_what_is_given():
    actions = torch.zeros(2, 4, 3)
    noise, time = torch.randn(2, 5, 4, 3), torch.rand(2, 5)
    for n, t in ((noise, time), (noise.flatten(0, 1), time.flatten())):
        got = flow.draws(actions, n, t, 1, 1.5, 0.999)
        assert torch.equal(got[0], noise)
        assert torch.equal(got[1], time)
    assert flow.draws(actions, noise, None, 1, 1.5, 0.999)[1].shape == (2, 5)
    assert flow.draws(actions, None, time, 1, 1.5, 0.999)[0].shape == (2, 5, 4, 3)
    assert flow.draws(actions, None, None, 7, 1.5, 0.999)[0].shape == (2, 7, 4, 3)
    with pytest.raises(UserError, match="time: shape"):
        flow.draws(actions, noise, torch.rand(2, 4), 1, 1.5, 0.999)
    with pytest.raises(UserError, match="noise: shape"):
        flow.draws(actions, torch.randn(2, 4, 4), None, 1, 1.5, 0.999)
