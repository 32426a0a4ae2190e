"""Configs of closed-loop benchmarks: each reads every sentence of its tasks, those of the evaluation too."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from vla_core.assemble import build_policy
from vla_core.envs._metaworld_phrasings import PHRASINGS
from vla_core.framework import FrameworkConfig
from vla_core.testing import make_sample, make_spec

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
MT50, TEN, DELAY = "closed_loop/mt50", "closed_loop/frameworks", "closed_loop/delay"
SMALL = {"hidden_size": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "vision_depth": 1}
HEADS = {"QwenOFT": "mlp_regression", "QwenPI": "layerwise_fm"}


def _tasks(script: str) -> list[str]:
    """Tasks that a script names; all fifty where it names none."""
    found = re.search(r"TASKS(?:=\$\{TASKS:-|=)([a-z][a-z, -]*)", (FOLDER / script).read_text())
    return re.split("[ ,]", found[1]) if found else list(PHRASINGS)


@pytest.mark.parametrize(
    ("configs", "script", "count"),
    [
        ([f"{MT50}/train.yaml"], f"{MT50}/2_train.sh", 50),
        ([f"{MT50}/train.yaml", f"{MT50}/qwenpi.yaml"], f"{MT50}/2_train.sh", 50),
        ([f"{TEN}/configs/base.yaml"], f"{TEN}/run.sh", 10),
        ([f"{TEN}/configs/base.yaml", f"{DELAY}/train.yaml"], f"{DELAY}/run.sh", 10),
        (["fusion/base.yaml"], "fusion/run.sh", 4),
    ],
    ids=["mt50", "mt50_qwenpi", "frameworks", "delay", "fusion"],
)  # fmt: skip
def test_every_sentence_fits_the_prompt(configs: list[str], script: str, count: int) -> None:
    merged = OmegaConf.merge(
        *(OmegaConf.load(FOLDER / config) for config in configs), {"framework": {"vlm": {"tiny": SMALL}}}
    )
    node = OmegaConf.to_container(merged.framework)
    vlm, head = {"name": "qwen2_5_vl", **node["vlm"]}, {"name": HEADS[node["name"]]}
    steps = [{"name": "normalize"}]
    config = FrameworkConfig(name=node["name"], horizon=node["horizon"], vlm=vlm, head=head, transforms=steps)
    spec = make_spec(n_cameras=3, height=128, width=128, horizon=node["horizon"])
    policy = build_policy(config, {spec.embodiment: spec})
    sample = make_sample(spec)
    text = policy.model.vlm.collator(policy.model.prompt)
    tasks = _tasks(script)
    assert len(tasks) == count
    for task in tasks:
        for sentence in (*PHRASINGS[task].train, *PHRASINGS[task].heldout):
            text([replace(sample, observation=replace(sample.observation, instruction=sentence))])
