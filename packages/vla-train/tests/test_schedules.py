"""The learning rate over a run: the shape of each schedule, and what is said where warm-up never ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from vla_train.config import TrainerConfig
from vla_train.optimizer.optim import lr_factor, never_full


def factors(steps: int, **options: Any) -> list[float]:
    factor = lr_factor(TrainerConfig(max_steps=steps, **options))
    return [factor(step) for step in range(steps)]


def test_wsd_warms_up_stays_and_goes_down_in_a_line() -> None:
    options = {"schedule": "wsd", "warmup_ratio": 0.2, "decay_ratio": 0.25, "min_lr_ratio": 0.1}
    found = factors(20, **options)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:16] == [1.0] * 12
    assert found[16:] == pytest.approx([0.1 + 0.9 * left for left in (0.8, 0.6, 0.4, 0.2)])
    assert lr_factor(TrainerConfig(max_steps=20, **options))(20) == pytest.approx(0.1)


def test_wsd_whose_warm_up_reaches_into_the_decay_does_not_jump() -> None:
    found = factors(10, schedule="wsd", warmup_steps=8, decay_ratio=1.0, min_lr_ratio=0.0)
    assert max(abs(a - b) for a, b in pairwise(found)) < 0.15
    assert max(found) == pytest.approx(0.6)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_with_min_lr", "linear"])
def test_schedules_end_at_the_floor(schedule: str) -> None:
    options = {"schedule": schedule, "warmup_steps": 4, "min_lr_ratio": 0.2}
    found = factors(20, **options)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4] == 1.0
    assert all(a > b for a, b in pairwise(found[4:]))
    assert lr_factor(TrainerConfig(max_steps=20, **options))(20) == pytest.approx(0.2)
    # Half-way both are in the middle.
    assert found[12] == pytest.approx(0.6)


def test_a_ratio_goes_before_steps() -> None:
    assert factors(40, schedule="constant", warmup_ratio=0.05, warmup_steps=30) == [0.5] + [1.0] * 39
    assert factors(5, schedule="constant", warmup_ratio=0.0) == [1.0] * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_steps": 500}, "trainer.warmup_steps: 500 of 50 steps warm up; {} 10 %"),
        (
            {"warmup_ratio": 0.5, "schedule": "wsd", "decay_ratio": 1.0, "min_lr_ratio": 0.0},
            "trainer.warmup_ratio: 25 of 50 steps warm up; {} 68 %",
        ),
    ],
)
def test_a_rate_that_is_never_reached_is_said(options: dict[str, Any], said: str) -> None:
    (line,) = never_full(TrainerConfig(max_steps=50, **options))
    assert line == f"{said.format('the learning rate reaches')} of what is set"
    assert f" {100 * max(factors(50, **options)):.0f} %" in line


@pytest.mark.parametrize("steps", [0, 1, 49, 50])
def test_a_rate_that_is_reached_is_not(steps: int) -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert not never_full(TrainerConfig(max_steps=50, warmup_steps=steps, schedule=schedule))  # type: ignore[arg-type]
