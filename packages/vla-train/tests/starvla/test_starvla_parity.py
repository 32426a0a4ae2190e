"""Imported runs compute what StarVLA's own classes computed: loss and actions, from images to numbers."""

from __future__ import annotations

import pytest
import torch
from vla_core.policy import VLAPolicy
from vla_train.cli import main

FLOW = {
    "QwenGR00T": [],
    "QwenPI": ["--dit_blocks", "interleaved"],
    "QwenPI_cross": [],
    "QwenPI_v3": [],
}
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
    with_state = case in WITH_STATE
    batch = policy.collate(golden_observations(with_state))
    with torch.no_grad():
        _close(policy.model.predict(batch, expected["start"]), expected["predicted"])
        pipeline = policy.pipelines["tiny"]
        train = policy.collator([pipeline(sample) for sample in golden_samples(with_state)])
        loss = policy(train, expected["noise"], expected["time"])["action_loss"]
    _close(loss.reshape(1), expected["loss"])


@pytest.mark.parametrize("case", ["QwenOFT", "QwenAdapter", "QwenAdapter_plain"])
def test_regression(imported, golden_observations, golden_samples, case):
    expected, policy = imported(case)
    with_state = case in WITH_STATE
    with torch.no_grad():
        batch = policy.collate(golden_observations(with_state))
        _close(policy.model.predict(batch, torch.zeros(2, 4, 3)), expected["predicted"])
        pipeline = policy.pipelines["tiny"]
        train = policy.collator([pipeline(sample) for sample in golden_samples(with_state)])
        _close(policy(train)["action_loss"].reshape(1), expected["loss"])


def test_fast(imported, golden_samples, golden_observations, starvla_golden, tmp_path):
    """StarVLA's loss over the whole vocabulary; without ``compat`` that over the action tokens."""
    words = ["--fast", str(starvla_golden / "fast_tokenizer"), "--image_size", "56x56"]
    expected, policy = imported("QwenFast", words)
    pipeline = policy.pipelines["tiny"]
    with torch.no_grad():
        train = policy.collator([pipeline(sample) for sample in golden_samples(False)])
        _close(policy(train)["action_loss"].reshape(1), expected["loss"])
    config = tmp_path / "out" / "config.yaml"
    config.write_text(config.read_text().replace("compat: starvla", "compat: none"))
    plain = VLAPolicy.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        train = plain.collator([pipeline(sample) for sample in golden_samples(False)])
        _close(plain(train)["action_loss"].reshape(1), expected["loss_action_tokens"])
    chunks = policy.act(golden_observations(False), [0, 1])
    assert [chunk.actions.shape for chunk in chunks] == [(4, 3)] * 2
