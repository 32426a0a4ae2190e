"""Every key of the fork at its published sizes has its place in our policy; nothing is stored or computed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_core.testing import make_spec
from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.fork import FORK, import_fork
from vla_train.importers.starvla.fork_backbone import find_fork_backbone
from vla_train.importers.starvla.plan import Choices
from vla_train.importers.starvla.prompt import vlm_node
from vla_train.importers.starvla.run_files import StarVLARun
from vla_vlm.common import tokenizer

GOLDEN = Path(__file__).parent / "golden" / "full_size_fork.json"
LLAVA = {
    "model_type": "llava_llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
    "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
}  # fmt: skip
CONFIG = {
    "framework": {
        "name": FORK,
        "mapanything_llava3d": {"base_vlm": "merged"},
        "action_model": {"future_action_window_size": 15, "num_inference_timesteps": 4},
    },
    "datasets": {"vla_data": {"include_state": True}},
}


def test_every_key_finds_its_place(tmp_path):
    state = {
        name.replace("*", str(i)): torch.empty(shape, device="meta")
        for name, (count, shape) in json.loads(GOLDEN.read_text()).items()
        for i in range(count)
    }
    for name, config in (("llava", LLAVA), ("siglip", SIGLIP)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    tokenizer.shipped().save(str(tmp_path / "llava" / "tokenizer.json"))
    here = Path("x")
    run = StarVLARun(here, 1, CONFIG, here, {}, here)
    ledger = Ledger(state, here, "StarVLA")
    backbone = find_fork_backbone(run, str(tmp_path / "llava"), str(tmp_path / "siglip"))
    plan = import_fork(run, ledger, Choices(), backbone)
    assert (plan.horizon, plan.action_dim, plan.state_dim) == (16, 7, 7)
    assert (plan.head["n_blocks"], plan.head["n_heads"], plan.head["output_width"]) == (16, 64, 2560)
    section = {
        "name": FORK, "horizon": plan.horizon, "vlm": vlm_node(run, backbone, plan, 7), "head": plan.head,
        "geometry": plan.geometry, "fusion": plan.fusion,
        "transforms": [{"name": "resize", "height": 224, "width": 224}, {"name": "normalize"}],
    }  # fmt: skip
    spec = make_spec(n_cameras=2, height=224, width=224, horizon=16)
    with torch.device("meta"):
        policy = build_policy(build_config(FrameworkConfig, section, "framework"), {spec.embodiment: spec})
    assert plan.late is not None
    plan.late(own := policy.model.state_dict())
    assert len(ledger.finish(own)) == len(own)
    assert sum(tensor.numel() for tensor in own.values()) > 11e9
