"""``compat: starvla_llava3d`` against the head of StarVLA's MapAnythingLlava3D fork, see golden/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput
from vla_heads import GR00TFlow, LayerwiseFM

DIMS = HeadDims(hidden_size=32, n_layers=3, action_dim=3, horizon=4, state_dim=2)
SIZES = {"n_heads": 2, "n_future_tokens": 2, "state_hidden": 16, "decoder_hidden": 16, "output_width": 24}


def translated(net):
    """The fork's names and layouts as ours."""
    shared = {
        "time.mlp.up": "model.timestep_encoder.timestep_embedder.linear_1",
        "time.mlp.down": "model.timestep_encoder.timestep_embedder.linear_2",
        "action_encoder.embed": "action_encoder.layer1",
        "action_encoder.out": "action_encoder.layer3",
        "state_encoder.up": "state_encoder.layer1",
        "state_encoder.down": "state_encoder.layer2",
        "decoder.up": "action_decoder.layer1",
        "decoder.down": "action_decoder.layer2",
        "final": "model.proj_out_2",
    }
    for i in range(3):
        theirs, ours = f"model.transformer_blocks.{i}", f"blocks.{i}"
        shared |= {
            f"{ours}.ada.modulation": f"{theirs}.norm1.linear",
            f"{ours}.q": f"{theirs}.attn1.to_q",
            f"{ours}.out": f"{theirs}.attn1.to_out.0",
            f"{ours}.ff.up": f"{theirs}.ff.net.0.proj",
            f"{ours}.ff.down": f"{theirs}.ff.net.2",
        }
    state = {}
    for part in ("weight", "bias"):
        state |= {f"{ours}.{part}": net[f"{theirs}.{part}"] for ours, theirs in shared.items()}
        for i in range(3):
            attention = f"model.transformer_blocks.{i}.attn1"
            keys_values = [net[f"{attention}.to_{x}.{part}"] for x in "kv"]
            state[f"blocks.{i}.context_kv.{part}"] = torch.cat(keys_values)
        shift, scale = net[f"model.proj_out_1.{part}"].chunk(2)
        state[f"final_norm.modulation.{part}"] = torch.cat([scale, shift])
    mix = net["action_encoder.layer2.weight"]
    state["action_encoder.mix_action.weight"], state["action_encoder.mix_time.weight"] = mix.chunk(2, dim=1)
    state["action_encoder.mix_action.bias"] = net["action_encoder.layer2.bias"]
    state["future"] = net["future_tokens.weight"]
    state["action_position"] = net["position_embedding.weight"][: DIMS.horizon]
    return state


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "starvla_llava3d.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def build(golden, **options):
    options = {"normalize_vl_hidden": False, "dropout": 0.2, **SIZES, **options}
    head = LayerwiseFM.build(LayerwiseFM.Config(compat="starvla_llava3d", **options), DIMS).eval()
    net = {k.removeprefix("net."): v.float() for k, v in golden.items() if k.startswith("net.")}
    head.load_state_dict(translated(net))
    return head


def observation(golden, dtype=torch.float32):
    hidden = {i: golden[f"in.hidden{i}"].to(dtype) for i in (1, 2, 3)}
    return HeadInputs(VLMOutput(hidden, golden["in.mask"], {}), state=golden["in.state"])


def close(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["cross", "concat"])
@torch.no_grad()
def test_loss_velocity_and_actions_equal_the_forks(golden, name):
    head = build(golden, use_concat_cross_context=name == "concat")
    inputs, actions, start = observation(golden), golden["in.actions"], golden["in.start"]
    every = torch.ones_like(actions, dtype=torch.bool)
    loss = head(inputs, actions, every, golden["in.noise"], golden["in.time"])["action_loss"]
    close(loss, golden[f"out.{name}.loss"])
    prepared, x = head.prepare(inputs), start
    for condition, velocity in zip(head.plan(), golden[f"out.{name}.velocity"], strict=True):
        got = head.step(prepared, x, condition)
        close(got, velocity)
        x = x + 0.25 * got
    close(head.sample(inputs, start), golden[f"out.{name}.predicted"])


@torch.no_grad()
def test_padding_of_the_context_is_read_by_no_block(golden):
    inputs = observation(golden)
    clean = build(golden).sample(inputs, golden["in.start"])
    for hidden in inputs.vlm.hidden.values():
        hidden.masked_fill_(~golden["in.mask"][..., None], 100.0)
    assert torch.equal(build(golden).sample(inputs, golden["in.start"]), clean)


def test_dropout_strikes_the_attention_twice_and_the_feed_forward_inside(golden, monkeypatch):
    head, calls = build(golden).train(), []
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: calls.append((self.p, x.shape[-1])) or x)
    prepared = head.prepare(observation(golden))
    head.step(prepared, golden["in.start"], torch.zeros(2))
    block = [(0.2, 32), (0.2, 32), (0.2, 128), (0.2, 32)]
    assert calls == block * 3 + [(0.0, 24)]


@pytest.mark.parametrize("normalise", [False, True])
@torch.no_grad()
def test_training_rounds_to_the_dtype_of_hidden_states_that_are_not_normalised(golden, normalise):
    """As there, where the normalised ones are fp32 whatever the backbone's dtype."""
    head, inputs = build(golden, normalize_vl_hidden=normalise), observation(golden, torch.bfloat16)
    exact = [golden["in.actions"], golden["in.noise"], golden["in.time"]]
    every = torch.ones_like(exact[0], dtype=torch.bool)
    losses = [
        head(inputs, actions, every, noise, time)["action_loss"]
        for actions, noise, time in (exact, [x.bfloat16().float() for x in exact])
    ]
    assert torch.equal(*losses) is not normalise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 16}, "width: compat: starvla_llava3d has blocks of the backbone's width 32"),
        ({"project_context": "per_layer", "width": 32}, "leave width null and project_context none"),
        ({"interleave_self_attention": False}, "here every block attends to the backbone"),
        ({"output_width": 0}, "output_width: must be >= 1, got 0"),
        ({"compat": "starvla", "output_width": 24}, "null with compat: starvla"),
        ({"compat": "llava3d"}, "compat: 'llava3d' must be 'none', 'starvla' or 'starvla_llava3d'"),
    ],
)
def test_mistakes_are_named(options, message):
    config = LayerwiseFM.Config(**{"compat": "starvla_llava3d", "n_heads": 2, **options})
    with pytest.raises(ConfigError, match=message):
        LayerwiseFM.build(config, DIMS)


def test_other_heads_do_not_know_it():
    config = GR00TFlow.Config(**{"compat": "starvla_llava3d"})
    with pytest.raises(ConfigError, match="compat: 'starvla_llava3d' must be 'none' or 'starvla'"):
        GR00TFlow.build(config, DIMS)


def test_output_width_without_compat_is_the_decoders_input():
    head = LayerwiseFM.build(LayerwiseFM.Config(n_heads=2, output_width=20), DIMS)
    assert head.final.weight.shape == (20, 32)
    assert head.decoder.up.weight.shape == (1024, 20)
