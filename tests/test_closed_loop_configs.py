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


# Of the suite, and LIBERO-PRO's: the simulator is not installed where this runs.
PLACES = """
between the plate and the ramekin
from table center
in the top drawer of the wooden cabinet
next to the cookie box
next to the plate
next to the ramekin
on the cookie box
on the ramekin
on the stove
on the wooden cabinet
"""
REWORDED = """
lift the black bowl between the plate and ramekin and set it on the plate
lift the black bowl from the table center and put it on the plate
take the black bowl from the top drawer and put it on plate
grab the black bowl beside the cookie box and set it on plate
pick the bowl beside the plate and put it on plate
take black bowl next to ramekin and place on plate
lift black bowl from cookie box and put it on plate
grab black bowl on ramekin and set it on plate
lift bowl from stove and set on plate
lift bowl from cabinet and put on plate
"""
THINGS = """
alphabet soup
cream cheese
salad dressing
bbq sauce
ketchup
tomato sauce
butter
milk
chocolate pudding
orange juice
"""


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
    tasks = _tasks(script)
    assert len(tasks) == count
    _read(configs, [said for task in tasks for said in (*PHRASINGS[task].train, *PHRASINGS[task].heldout)])


@pytest.mark.parametrize(
    "config",
    [FOLDER / "closed_loop/libero/train.yaml", FOLDER.parent / "examples/LIBERO/train_files/train.yaml"],
)
def test_every_sentence_of_two_suites_of_libero_fits_the_prompt(config: Path) -> None:
    plain = [f"pick up the black bowl {place} and place it on the plate" for place in _lines(PLACES)]
    things = [f"pick up the {thing} and place it in the basket" for thing in _lines(THINGS)]
    reworded = [f"lift {thing} and put it into basket" for thing in _lines(THINGS)]
    _read([str(config)], [*plain, *_lines(REWORDED), *things, *reworded])


def test_libero_at_size_hears_several_wordings_and_none_of_the_evaluation() -> None:
    configs = [f"closed_loop/libero/{name}.yaml" for name in ("train", "large")]
    (step,) = (s for s in OmegaConf.load(FOLDER / configs[1]).framework.transforms if s.name == "paraphrase")
    plain = {f"pick up the black bowl {place} and place it on the plate" for place in _lines(PLACES)}
    plain |= {f"pick up the {thing} and place it in the basket" for thing in _lines(THINGS)}
    groups = [list(group) for group in step.groups]
    assert len(groups) == 16
    assert all(group[0] in plain and len(group) == 6 for group in groups)
    said = [sentence for group in groups for sentence in group]
    assert not {*said} & {*_lines(REWORDED)}
    _read(configs, said)


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


def _read(configs: list[str], sentences: list[str]) -> None:
    """The collator of these configs cuts none of the sentences off, or it raises."""
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
    for sentence in sentences:
        text([replace(sample, observation=replace(sample.observation, instruction=sentence))])
