"""Our normalisation with imported statistics gives lerobot's numbers, formula by formula."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from vla_core.policy import VLAPolicy
from vla_train.cli import main

FIELDS = ("mean", "std", "min", "max", "q01", "q10", "q90", "q99")
STATS = {
    key: dict(zip(FIELDS, map(list, zip(*rows, strict=True)), strict=True))
    for key, rows in {
        # The last dim never moves.
        "observation.state": [(0.5, 2.0, -3, 4, -2, -1, 1.5, 3.5), (2.0, 0.0, 2, 2, 2, 2, 2, 2)],
        "action": [
            (0.1, 1.5, -4, 5, -3, -2, 2, 3),
            (1, 0.5, 0, 2, 0.1, 0.2, 1.8, 1.9),
            (7, 0, 7, 7, 7, 7, 7, 7),
        ],
    }.items()
}


def lerobot(mode, stats, x):
    """Its NormalizerProcessorStep, in float64."""
    s = {name: np.array(value, np.float64) for name, value in stats.items()}
    if mode == "IDENTITY":
        return x
    if mode == "MEAN_STD":
        return (x - s["mean"]) / (s["std"] + 1e-8)
    low, high = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}[mode]
    width = s[high] - s[low]
    return 2 * (x - s[low]) / np.where(width == 0, 1e-8, width) - 1


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY"])
def test_every_mode(published, tmp_path, mode):
    case = published("pi0")
    modes = {"STATE": mode, "ACTION": mode}
    case.step("policy_preprocessor.json", "normalizer_processor", norm_map=modes)
    case.step("policy_postprocessor.json", "unnormalizer_processor", norm_map=modes)
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(STATS))
    assert main(["import-lerobot", *case.words(tmp_path / "out"), "--stats", str(file)]) == 0
    pipeline = VLAPolicy.from_pretrained(tmp_path / "out").pipelines["tiny"]
    state = np.array([0.9, 2.0], np.float32)
    actions = np.array([[1.0, 0.4, 7.0], [-2.0, 3.0, 7.0]], np.float32)
    seen = pipeline.observe(replace(case.samples()[0].observation, state=state))
    np.testing.assert_allclose(seen.state, lerobot(mode, STATS["observation.state"], state), rtol=1e-5)
    wanted = lerobot(mode, STATS["action"], actions)
    np.testing.assert_allclose(pipeline.actions(actions, state), wanted, rtol=1e-5)
    back = pipeline.inverse(wanted.astype(np.float32), state)
    np.testing.assert_allclose(back, actions, rtol=1e-5)
    if mode != "IDENTITY":  # whatever is predicted for a dim that never moves, it stays
        still = pipeline.inverse(np.full((1, 3), 0.3, np.float32), state)[0, 2]
        assert still == pytest.approx(7.0, abs=1e-5)
