"""Imported runs compute what StarVLA's own classes computed: loss and actions, from images to numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from vla_core.policy import VLAPolicy
from vla_train.cli import main

FLOW = {
    "QwenGR00T": [],
    "QwenPI": ["--dit_blocks", "interleaved"],
    "QwenPI_cross": [],
    "QwenPI_v3": [],
    "qwen3/QwenGR00T": [],
    "qwen3/QwenPI_v3": [],
}
REGRESSION = ("QwenOFT", "QwenAdapter", "QwenAdapter_plain", "qwen3/QwenOFT", "qwen3/QwenAdapter")
WITH_STATE = {"QwenGR00T", "QwenPI", "QwenPI_v3", "QwenOFT", "QwenAdapter"}


@pytest.fixture
def imported(starvla_run, tmp_path):
    def run(case, words=()):
        golden = starvla_run(case)
        assert main(["import-starvla", *golden.words(tmp_path / "out"), *words]) == 0
        return golden.expected, VLAPolicy.from_pretrained(tmp_path / "out")

    return run


def _close(ours, theirs):
    scale = theirs.abs().max().item()
    assert (ours - theirs).abs().max().item() <= 1e-4 * scale


@pytest.mark.parametrize("case", FLOW)
def test_flow_matching(imported, golden_observations, golden_samples, case):
    expected, policy = imported(case, FLOW[case])
    with_state = case.removeprefix("qwen3/") in WITH_STATE
    batch = policy.collate(golden_observations(with_state))
    with torch.no_grad():
        _close(policy.model.predict(batch, expected["start"]), expected["predicted"])
        pipeline = policy.pipelines["tiny"]
        train = policy.collator([pipeline(sample) for sample in golden_samples(with_state)])
        loss = policy.model(train, expected["noise"], expected["time"])["action_loss"]
    _close(loss.reshape(1), expected["loss"])


@pytest.mark.parametrize("case", REGRESSION)
def test_regression(imported, golden_observations, golden_samples, case):
    expected, policy = imported(case)
    with_state = case.removeprefix("qwen3/") in WITH_STATE
    with torch.no_grad():
        batch = policy.collate(golden_observations(with_state))
        _close(policy.model.predict(batch, torch.zeros(2, 4, 3)), expected["predicted"])
        pipeline = policy.pipelines["tiny"]
        train = policy.collator([pipeline(sample) for sample in golden_samples(with_state)])
        _close(policy.model(train)["action_loss"].reshape(1), expected["loss"])


def test_fast(imported, golden_samples, golden_observations, starvla_golden, tmp_path):
    """StarVLA's loss over the whole vocabulary; without ``compat`` that over the action tokens."""
    words = ["--fast", str(starvla_golden / "fast_tokenizer"), "--image_size", "56x56"]
    expected, policy = imported("QwenFast", words)
    pipeline = policy.pipelines["tiny"]
    with torch.no_grad():
        train = policy.collator([pipeline(sample) for sample in golden_samples(False)])
        _close(policy.model(train)["action_loss"].reshape(1), expected["loss"])
    config = tmp_path / "out" / "config.yaml"
    config.write_text(config.read_text().replace("compat: starvla", "compat: none"))
    plain = VLAPolicy.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        train = plain.collator([pipeline(sample) for sample in golden_samples(False)])
        _close(plain.model(train)["action_loss"].reshape(1), expected["loss_action_tokens"])
    chunks = policy.act(golden_observations(False), [0, 1])
    assert [chunk.actions.shape for chunk in chunks] == [(4, 3)] * 2


def test_hidden_states_of_qwen3_are_those_of_its_transformers(imported, golden_observations, tmp_path):
    """Without the option that the importer writes, the same weights answer something else."""
    expected, policy = imported("qwen3/QwenOFT")
    assert policy.config["vlm"]["hidden_states"] == "transformers4"
    config = tmp_path / "out" / "config.yaml"
    config.write_text(config.read_text().replace("transformers4", "transformers5"))
    other = VLAPolicy.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        answer = other.model.predict(other.collate(golden_observations(True)), torch.zeros(2, 4, 3))
    assert (answer - expected["predicted"]).abs().max() > 0.2


def test_every_golden_names_the_versions_that_made_it(starvla_golden):
    for file in sorted(starvla_golden.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            made = opened.metadata() or {}
        assert {"transformers", "torch"} <= made.keys() or made == {"made_by": "numpy"}, file
        if "starvla" in made and "fork" not in made["starvla"]:
            assert made["transformers"] == "4.57.0", file


def test_a_run_of_another_transformers_says_so(starvla_run, tmp_path, capsys):
    words = starvla_run("qwen3/QwenOFT").words(tmp_path / "out")
    assert main(["import-starvla", *words, "--hidden_states", "transformers5"]) == 0
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "hidden_states: transformers5" in config
    words = starvla_run("QwenOFT", tmp_path / "other").words(tmp_path / "never")
    assert main(["import-starvla", *words, "--hidden_states", "transformers5"]) == 2
    assert "--hidden_states: only Qwen3-VL" in capsys.readouterr().err
