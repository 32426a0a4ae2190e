"""Every mistake under ``trainer.evaluation`` is one line before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from vla_core.errors import ConfigError, UserError
from vla_core.registry import override
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_train.config import EvaluationConfig
from vla_train.evaluation import evaluate
from vla_train.evaluation.evaluate import check_evaluation

MOVE = GroupSpec("move", 2, "cm", representation="delta")


@dataclass(frozen=True)
class ScreenConfig:
    task: str = "left"
    image_size: int = 32
    cameras: tuple[str, ...] = ("front",)
    hz: float = 10.0


class ScreenEnv:
    """A simulator that can be made, no more: top and front cameras of any size."""

    Config = ScreenConfig
    max_steps = 10
    listed: tuple[str, ...] = ("left", "right")

    def __init__(self, config: ScreenConfig) -> None:
        if config.task not in ("left", "right"):
            raise UserError(f"env.task: there is no '{config.task}'")
        for camera in config.cameras:
            if camera not in ("front", "top"):
                raise ConfigError(f"env.cameras: no camera '{camera}'")
        size = config.image_size
        cameras = tuple(CameraSpec(name, size, size) for name in config.cameras)
        self.observation_spec = ObservationSpec(cameras, (GroupSpec("place", 2, "m"),))
        self.action_spec = ActionSpec((MOVE,), 1, config.hz)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return cls.listed

    def close(self) -> None:
        """Nothing to free."""


class UnlistedEnv(ScreenEnv):
    """Knows its tasks only as it is made."""

    listed = ()


def robot(env: Any = ScreenEnv, horizon: int = 8, **options: Any) -> dict[str, RobotSpec]:
    """The robot of data that were recorded in the simulator with ``options``."""
    made = env(ScreenConfig(**options))
    action = replace(made.action_spec, horizon=horizon)
    return {"arm": RobotSpec(made.observation_spec, action, embodiment="arm")}


class DarkEnv(ScreenEnv):
    """A user's own class with a fault of its own."""

    def __init__(self, config: ScreenConfig) -> None:
        raise RuntimeError("no display\nset DISPLAY")


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``check_evaluation`` with the simulator known; it is made here instead of in a process of its own."""

    class Here:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def submit(self, make: Callable[..., Any], *arguments: Any) -> Any:
            self.result = lambda: make(*arguments)
            return self

    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(evaluate, "_program", lambda name: name)
    undo = [override("vla.envs", "screen", ScreenEnv), override("vla.envs", "unlisted", UnlistedEnv)]
    undo.append(override("vla.envs", "dark", DarkEnv))
    trace = tmp_path / "run.error.txt"

    def bridges(embodiment: str) -> int:
        if embodiment != "arm":
            raise UserError("previous chunk: an MLPRegression cannot keep the start of an earlier chunk")
        return 3

    yield lambda robots, **given: check_evaluation(
        EvaluationConfig(**{"env": "screen", **given}), robots, trace, bridges
    )
    for back in undo:
        back()


def test_what_fits_passes(check: Any) -> None:
    check(robot(), tasks=("left", "right"), execute_steps=8)
    check(robot(image_size=64), tasks=("left",), env_options={"image_size": 64}, env="unlisted")
    check(robot(image_size=64), tasks=())
    check(robot(), tasks=("left",), temporal_ensemble_coeff=0.01, ensemble_newest=("move",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env": "scren"}, r"trainer\.evaluation\.env: .*did you mean 'screen'"),
        ({"tasks": ("lefd",)}, r"evaluation\.tasks: 'screen' has no task 'lefd'.*did you mean 'left'"),
        ({"tasks": ("left", "left")}, r"trainer\.evaluation\.tasks: one is named twice"),
        ({"env": "unlisted", "tasks": ("left", "up")}, r"env_options: env\.task: there is no 'up'"),
        ({"embodiment": "leg"}, r"trainer\.evaluation\.embodiment must name .* one of arm"),
        ({"env_options": {"task": "left"}}, r"env_options\.task: name tasks in trainer\.evaluation\.tasks"),
        ({"env_options": {"imagesize": 32}}, r"evaluation\.env_options.*did you mean '\S*image_size'"),
        ({"env_options": {"image_size": "big"}}, r"trainer\.evaluation\.env_options\.image_size"),
        # The simulator's own check, and what the data were not recorded with.
        ({"env_options": {"cameras": ["frnt"]}}, r"evaluation\.env_options: env\.cameras: no camera 'frnt'"),
        (
            {"env_options": {"image_size": 48}},
            r"cameras\[front\]\.height: the data has 32, trainer\.evaluation\.env screen has 48; "
            r"set trainer\.evaluation\.env_options",
        ),
        ({"env_options": {"cameras": ["top"]}}, r"the data has 'front', trainer\.evaluation\.env .* 'top'"),
        ({"env_options": {"cameras": ["front", "top"]}}, r"1 entries \['front'\].* 2 \['front', 'top'\]"),
        ({"env_options": {"hz": 20.0}}, r"action\.control_hz: the data has 10\.0, .* has 20\.0"),
        ({"action_ensemble_horizon": 3}, r"trainer\.evaluation\.action_ensemble_horizon: belongs to an ens"),
        ({"temporal_ensemble_coeff": 0, "adaptive_ensemble_alpha": 1}, r"evaluation\..* exclude each other"),
        ({"temporal_ensemble_coeff": 0.0, "ensemble_newest": ("mov",)}, r"evaluation: .*did you mean 'move'"),
        ({"execute_steps": 9}, r"trainer\.evaluation\.execute_steps: 9, but a chunk has 8 steps"),
        ({"delay_steps": 8}, r"trainer\.evaluation\.delay_steps: 8 leaves nothing of a chunk of 8 steps"),
        ({"rtc": True, "delay_steps": 4}, r"evaluation\.delay_steps: 4; this policy bridges at most 3 steps"),
        ({"rtc": True}, r"evaluation\.rtc: say how many .* takes .trainer\.evaluation\.delay_steps."),
        ({"delay_steps": 1, "hold_steps": 1}, r"evaluation\.hold_steps and trainer\.evaluation\.delay_steps"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(check: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(robot(), **{"tasks": ("left",), **given})
    assert "\n" not in str(caught.value)


def test_a_head_that_continues_no_chunk(check: Any) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.rtc: previous chunk: an MLPRegression cannot"):
        check({"leg": robot()["arm"]}, tasks=("left",), rtc=True, delay_steps=1)


def test_a_simulator_that_cannot_be_made(check: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(robot(), tasks=("left",), env="dark")
    trace = tmp_path / "run.error.txt"
    assert str(caught.value) == (
        "trainer.evaluation.env: simulator 'dark', task 'left': making it raised RuntimeError: "
        f"no display set DISPLAY (traceback: {trace})"
    )
    assert "in __init__" in trace.read_text()


def test_offsets_from_a_state_are_not_averaged(check: Any) -> None:
    spec = robot()["arm"]
    group = replace(MOVE, representation="relative")
    offsets = replace(spec, action=replace(spec.action, groups=(group,)))
    with pytest.raises(ConfigError, match=r"trainer\.evaluation: move: offsets from the state at a chunk's"):
        check({"arm": offsets}, tasks=("left",), adaptive_ensemble_alpha=0.1)


def test_the_rollout_is_told_how_to_average(check: Any) -> None:
    config = EvaluationConfig(
        tasks=("left",),
        adaptive_ensemble_alpha=0.2,
        action_ensemble_horizon=3,
        ensemble_newest=("move", "grip"),
    )
    command = evaluate.rollout_command(config, "127.0.0.1:1", Path("out"))
    told = " ".join(command)
    assert "--adaptive_ensemble_alpha 0.2 --action_ensemble_horizon 3 --ensemble_newest move" in told
    assert "--ensemble_newest grip" in told
    assert "temporal" not in told
