"""The keys of ``action_model`` in StarVLA's training YAMLs, through every framework."""

from __future__ import annotations

import pytest
from vla_core.build import FrameworkConfig
from vla_core.config import build_config
from vla_train.ablate.plan import resolve
from vla_train.config import RunConfig
from vla_train.dialects.starvla.detect import flat
from vla_train.presets import list_presets
from vla_train.spellings import load_run

# Every key of action_model in StarVLA's published training YAMLs (commit 0ed0aad), with a value of theirs.
ACTION_MODEL = {
    "action_dim": 7, "action_hidden_dim": 1024, "action_high": 1.0, "action_horizon": 8, "action_low": -1.0,
    "action_model_type": "DiT-B", "action_query_num": 64, "add_pos_embed": True, "decode_schedule": "cosine",
    "future_action_window_size": 7, "hidden_dim": 2048, "hidden_size": 1024,
    "inpainting_d_schedule": "linear_decay", "inpainting_mask": False, "l1_loss_weight": 0.1,
    "max_seq_len": 1024, "no_mask_token_prob": 0.0, "noise_beta_alpha": 1.5, "noise_beta_beta": 1.0,
    "noise_s": 0.999, "num_actions_chunk": 8, "num_bins": 256, "num_inference_steps": 8,
    "num_inference_timesteps": 4, "num_target_vision_tokens": 32, "num_timestep_buckets": 1000,
    "past_action_window_size": 0, "phase": "Training", "proprio_size": 16, "repeated_diffusion_steps": 8,
    "representation": "bin", "sep_proprio": True, "state_dim": 7, "train_mask_schedule": "cosine",
    "traj_decoder_type": "transformer_split_action_v2", "use_pro_version": True, "use_proprio": True,
    "use_simple_max": False,
    "diffusion_model_cfg": {
        "action_dit_hidden_dim": 1024, "attention_head_dim": 64, "cross_attention_dim": 2048, "dropout": 0.2,
        "final_dropout": True, "interleave_self_attention": True, "norm_type": "ada_norm",
        "num_attention_heads": 32, "num_layers": 16, "output_dim": 1024, "positional_embeddings": None,
    },
}  # fmt: skip
ONLY_FLOW = {"noise_beta_beta": 2.0, "add_pos_embed": False,
             "diffusion_model_cfg": {"positional_embeddings": "sinusoidal"}}  # fmt: skip


@pytest.mark.parametrize("name", [*list_presets(), "QwenFM"])
def test_every_key_of_action_model_goes_through_every_framework(theirs, name):
    """One YAML serves all of StarVLA's frameworks there; what a head does not read has no effect."""
    file = theirs(framework__name=name, framework__action_model=ACTION_MODEL)
    lines: list[str] = []
    tree = load_run([file], [], lines.append)
    config = resolve(tree)  # every part's Config takes its node
    for key in flat(ACTION_MODEL, "framework.action_model"):
        assert any(line.startswith(f"starvla  {key}=") for line in lines), key
    repeats = {"QwenGR00T": 8, "QwenDual": 8, "QwenPI": 2, "QwenFM": 2, "QwenPI_v3": 16,
               "MapAnythingLlava3DPI": 8, "QwenMapAnythingPI": 8}  # fmt: skip
    assert config["framework"]["head"].get("repeated_diffusion_steps", 1) == repeats.get(name, 1)
    if name in ("PI0", "PI05"):
        assert config["framework"]["vlm"]["name"] == "paligemma"
    if name not in repeats:
        assert resolve(load_run([theirs(framework__name=name, framework__action_model=ONLY_FLOW)]))


def test_bf16_of_starvla_keeps_masters(theirs, toy_config):
    """Its engine has fp32 masters; bf16 weights without them would hardly move."""
    lines: list[str] = []
    tree = load_run([theirs(framework__qwenvl__use_bf16=True)], [], lines.append)
    run = build_config(RunConfig, tree.data, "", tree)
    framework = build_config(FrameworkConfig, run.framework, "framework", tree)
    assert run.trainer.precision == "bf16"
    assert "dtype" not in framework.vlm
    assert any("use_bf16=True -> trainer.precision=bf16 (computes in bf16" in line for line in lines)
    tree = load_run([toy_config], ["framework.qwenvl.use_bf16=true"])
    assert tree.data["trainer"]["precision"] == "bf16"
    assert "dtype" not in tree.data["framework"]["vlm"]
