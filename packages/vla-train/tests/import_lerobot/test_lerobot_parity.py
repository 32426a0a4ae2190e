"""Imported policies compute what lerobot's own computed: loss and actions, from raw images to real units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vla_core.policy import VLAPolicy
from vla_train.cli import main


@pytest.fixture(params=["pi0", "pi05"])
def case(request, published, tmp_path):
    directory = published(request.param)
    assert main(["import-lerobot", *directory.words(tmp_path / "out")]) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    pipeline = policy.pipelines["tiny"]
    return directory, policy, pipeline, [pipeline(sample) for sample in directory.samples()]


def close(ours, theirs):
    scale = theirs.abs().max().item()
    assert scale > 0.1
    assert (torch.as_tensor(ours) - theirs).abs().max().item() <= 1e-4 * scale


def test_predicted_actions(case):
    directory, policy, pipeline, samples = case
    expected = directory.expected
    batch = policy.collator(samples)
    assert batch.view_mask.tolist() == [[True, True], [True, False], [False, True]]
    assert not batch.tokens.attention_mask.all(dim=1).any()  # every prompt is padded
    with torch.no_grad():
        predicted = policy.model.predict(batch, expected["start"])
    close(predicted, expected["predicted"])
    raw = directory.samples()
    answered = [pipeline.inverse(p.numpy(), s.observation.state) for p, s in zip(predicted, raw, strict=True)]
    close(np.stack(answered), expected["answered"])


def test_loss(case):
    directory, policy, _, samples = case
    expected = directory.expected
    noise, time = expected["noise"], 1.0 - expected["time"]  # here 1 is clean
    with torch.no_grad():
        together = policy.model(policy.collator(samples), noise, time)["action_loss"]
        close(together, expected["loss"].mean())
        for b, sample in enumerate(samples):
            alone = policy.model(policy.collator([sample]), noise[b : b + 1], time[b : b + 1])["action_loss"]
            close(alone, expected["loss"][b])


def test_it_acts_and_repeats_itself(case):
    directory, policy, _, _ = case
    observation = directory.samples()[0].observation
    first, second = (policy.act([observation], [3])[0].actions for _ in range(2))
    assert first.shape == (4, 3)
    assert np.array_equal(first, second)
    assert policy.noise_shape == (4, 6)
