"""Every key of lerobot's full-size networks has its place in ours; nothing is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_core.testing import make_spec
from vla_train.importers.common.ledger import Ledger
from vla_train.importers.lerobot.tensors import move_all, move_table
from vla_train.presets import load_preset

WORDS = 257_152  # of PaliGemma's tokenizer, without <image>


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["lerobot", "openpi"])
@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_every_key_finds_its_place(golden, variant, prefix):
    state = {
        f"{prefix}{name.removeprefix('model.').replace('*', str(i))}": torch.empty(shape, device="meta")
        for name, (count, shape) in json.loads((golden / "full_size.json").read_text())[variant].items()
        for i in range(count)
    }
    ledger = Ledger(state, Path("x"), "lerobot")
    widths = move_all(ledger, variant)
    assert widths == {"width": 1024, "mlp_width": 4096}
    section = load_preset(variant.upper())
    section["vlm"]["base_vlm"] = "3b"
    section["head"] |= widths
    spec = make_spec(n_cameras=3, height=224, width=224, horizon=50)
    with torch.device("meta"):
        policy = build_policy(build_config(FrameworkConfig, section, "framework"), {spec.embodiment: spec})
    own = policy.model.state_dict()
    move_table(ledger, own, WORDS)
    result = ledger.finish(own)
    assert result.keys() == own.keys()
    assert sum(len(entry.sources) for entry in ledger.entries) == len(state)
    dropped = {entry.sources[0].removeprefix(prefix) for entry in ledger.entries if entry.what == "dropped"}
    assert dropped == {
        "paligemma_with_expert.gemma_expert.lm_head.weight",
        "paligemma_with_expert.paligemma.lm_head.weight",
    }
    (note,) = [entry.note for entry in ledger.entries if entry.target.endswith("embed_tokens.weight")]
    assert "with 64 rows of zeros below" in note
