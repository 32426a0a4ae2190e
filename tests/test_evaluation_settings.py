"""What a training evaluates with is what ``vla-rollout`` takes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from vla_core.episodes import EpisodeSettings
from vla_serve import RolloutSettings
from vla_serve.rollouts.options import make_parser
from vla_train.config import EvaluationConfig
from vla_train.evaluation import evaluate

PACES = [
    {},
    {"episodes": 3, "seed": 5, "workers": 1, "execute_steps": 2, "rtc": True, "delay_steps": 1},
    {"hold_steps": 2, "delay_steps": 0},
    {"delay_steps": "measured", "temporal_ensemble_coeff": 0.01, "ensemble_newest": ["grip", "move"]},
    {"hold_steps": "measured", "adaptive_ensemble_alpha": 0.2, "action_ensemble_horizon": 3},
]


@pytest.mark.parametrize("pace", PACES)
def test_every_setting_of_an_episode_reaches_the_rollout(pace, monkeypatch):
    monkeypatch.setattr(evaluate, "_program", lambda name: name)
    config = EvaluationConfig(tasks=("left",), env="toy", **pace)
    program, *words = evaluate.rollout_command(config, "127.0.0.1:1", Path("out"))
    given = vars(make_parser().parse_args(words))
    settings = RolloutSettings(
        "127.0.0.1:1", "toy", ("left",), **{f.name: given[f.name] for f in fields(EpisodeSettings)}
    )
    for setting in fields(EpisodeSettings):
        assert getattr(settings, setting.name) == getattr(config, setting.name), setting.name
    assert program == "vla-rollout"
