"""``trainer.evaluation.every``: served and rolled out in the real simulator while a policy trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_core.errors import ConfigError
from vla_train.checkpointing.saving import Best
from vla_train.cli import main
from vla_train.config import EvaluationConfig, TrainerConfig
from vla_train.evaluation.closed_loop import metrics_of


def test_tasks_that_ran_count_alike() -> None:
    tasks = [{"task": "a", "success_rate": 0.5}, {"task": "b", "success_rate": 1.0}]
    found = metrics_of({"tasks": [*tasks, {"task": "c", "success_rate": None}]})
    assert found == {
        "rollout/success": 0.75,
        "rollout/failure": 0.25,
        "rollout/success/a": 0.5,
        "rollout/success/b": 1.0,
    }


def test_the_best_is_of_rollouts_or_of_validations() -> None:
    rolled, validated = {"rollout/failure": 0.5}, {"val/loss": 1.0}
    best = Best("rollout/failure", patience=2)
    assert not best.sees(1, validated)
    assert best.sees(2, rolled)
    assert not best.sees(3, {})  # a program failed: nothing is known, and no patience is lost
    assert best.waited == 0
    assert not best.sees(4, rolled)
    assert best.waited == 1
    other = Best("val/loss")
    assert not other.sees(1, rolled)
    assert other.sees(2, validated)


@pytest.mark.parametrize(
    ("metric", "every", "message"),
    [
        ("rollout/failure", 0, "needs trainer.evaluation.every and .tasks"),
        ("rollout/success", 5, "the lowest is kept; name rollout/failure"),
    ],
)
def test_a_best_that_would_never_come_is_refused(metric: str, every: int, message: str) -> None:
    evaluation = EvaluationConfig(tasks=("faucet-open",), every=every)
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(keep_best=metric, evaluation=evaluation)


@pytest.mark.slow
def test_a_policy_is_rolled_out_every_so_many_steps(
    quickstart: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("metaworld")
    quickstart["trainer"] |= {
        "max_steps": 3,
        "keep_best": "rollout/failure",
        "evaluation": {
            "tasks": ["faucet-open"], "episodes": 1, "env_options": {"max_steps": 4}, "workers": 1, "every": 2
        },
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(quickstart))
    assert main(["--config", str(path)]) == 0
    run = tmp_path / "runs" / "tiny"
    assert "step 2  closed loop: success 0 %" in capfd.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (rolled,) = [line for line in lines if "rollout/success" in line]
    assert rolled == {
        "step": 2,
        "rollout/success": 0.0,
        "rollout/failure": 1.0,
        "rollout/success/faucet-open": 0.0,
    }
    results = json.loads((run / "rollouts" / "steps_2" / "rollout" / "results.json").read_text())
    assert results["complete"]
    assert (run / "checkpoints" / "best" / "meta.json").is_file()
    assert json.loads((run / "checkpoints" / "best" / "meta.json").read_text())["step"] == 2
    assert (run / "rollout" / "results.json").is_file()  # and once more at the end
