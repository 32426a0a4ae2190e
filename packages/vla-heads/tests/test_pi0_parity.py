"""PI0Head against lerobot's PI0 and PI05, see golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from vla_core.interfaces import HeadDims, HeadInputs, KVDims, VLMOutput
from vla_heads import PI0Config, PI0Head

DIMS = HeadDims(
    hidden_size=32, n_layers=2, action_dim=6, horizon=5, state_dim=6, kv=KVDims(8, 2, 6, 10_000.0)
)


@pytest.fixture(params=["pi0", "pi05"])
def case(request):
    with np.load(Path(__file__).parent / "golden" / f"{request.param}.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files}
    config = PI0Config(request.param, width=24, mlp_width=40, max_action_dim=6, max_state_dim=6)
    head = PI0Head.build(config, DIMS).eval()
    head.load_state_dict({k.removeprefix("net."): v for k, v in golden.items() if k.startswith("net.")})
    kv = {i: (golden[f"in.k{i}"], golden[f"in.v{i}"]) for i in (1, 2)}
    return head, HeadInputs(VLMOutput({}, golden["in.mask"], {}, kv=kv), state=golden["in.state"]), golden


def close(got, expected):
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_velocity_of_one_step(case):
    head, inputs, golden = case
    got = head.step(head.prepare(inputs), golden["in.noise"], 1.0 - golden["in.level"])
    close(got, -golden["out.velocity"])


@torch.no_grad()
def test_loss(case):
    head, inputs, golden = case
    actions, noise, time = golden["in.actions"], golden["in.noise"][:, None], 1.0 - golden["in.level"]
    for row in range(2):  # each row's own mean, read off a mask
        mask = torch.zeros_like(actions, dtype=torch.bool)
        mask[row] = True
        full = torch.where(mask, actions, 0.0)
        got = head(inputs, full, mask, noise, time)["action_loss"]
        close(got, golden["out.loss"][row].mean())
    every = torch.ones_like(actions, dtype=torch.bool)
    close(head(inputs, actions, every, noise, time)["action_loss"], golden["out.loss"].mean())


def test_ten_steps(case):
    head, inputs, golden = case
    with torch.inference_mode():
        close(head.sample(inputs, golden["in.noise"]), golden["out.sampled"])
