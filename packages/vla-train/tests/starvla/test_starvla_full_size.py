"""Every key of StarVLA's full-size heads (H = 2048, 36 layers) has its place in ours; nothing is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from vla_core import registry
from vla_core.config import build_config
from vla_core.interfaces import HeadDims
from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.importer import FRAMEWORKS
from vla_train.importers.starvla.plan import Choices
from vla_train.importers.starvla.run_files import StarVLARun

FILE = Path(__file__).parent / "golden" / "full_size_heads.json"
HEADS = json.loads(FILE.read_text())
HIDDEN, LAYERS = 2048, 36
HORIZON = {"QwenGR00T": 8, "QwenGR00T-L": 8, "QwenPI": 16, "QwenPI_v3": 16, "QwenOFT": 8, "QwenAdapter": 16}


class OneToken(Backbone):
    def token_id(self, text):
        return 7


def _state(case):
    state = {}
    for name, (count, *shapes) in HEADS[case].items():
        for i in range(count):
            shape = shapes[i % len(shapes)]
            state[name.replace("*", str(i))] = torch.empty(shape, device="meta")
    state["qwen_vl_interface.model.model.language_model.embed_tokens.weight"] = torch.empty(
        151936, HIDDEN, device="meta"
    )
    return state


@pytest.mark.parametrize("case", sorted(HEADS))
def test_every_key_of_the_head_finds_its_place(case):
    name, _, size = case.partition("-")
    action = {"action_horizon": HORIZON[case], "action_model_type": f"DiT-{size or 'B'}"}
    config = {
        "framework": {"name": name, "action_model": action},
        "datasets": {"vla_data": {"include_state": name != "QwenPI_v3"}},
    }
    here = Path("x")
    run = StarVLARun(here, 1, config, here, {}, here)
    ledger = Ledger(_state(case), here, "StarVLA")
    backbone = OneToken("qwen2_5_vl", "x", 28, 0, 10**9)
    plan = FRAMEWORKS[name](run, ledger, Choices("interleaved" if name == "QwenPI" else "cross"), backbone)
    ledger.drop("qwen_vl_interface.", "not the head's")
    cls = registry.load("vla.heads", plan.head["name"])
    node = {key: value for key, value in plan.head.items() if key != "name"}
    state_dim = plan.state_dim if plan.state == "vector" else 0
    dims = HeadDims(HIDDEN, LAYERS, 7, HORIZON[case], state_dim or 0)
    with torch.device("meta"):
        head = cls.build(build_config(cls.Config, node, "head"), dims)
    result = ledger.finish({f"head.{key}": value for key, value in head.state_dict().items()})
    assert len(result) == len(head.state_dict())
    dropped = sum(entry.what == "dropped" for entry in ledger.entries)
    assert sum(len(entry.sources) for entry in ledger.entries) >= len(ledger.state)
    assert (dropped > 1) == (name in ("QwenPI", "QwenPI_v3"))
