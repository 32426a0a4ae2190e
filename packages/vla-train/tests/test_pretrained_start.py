"""Starting from a checkpoint: whose statistics hold, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vla_train.cli import main

SAID = "statistics of its own data; trainer.keep_statistics=true takes the checkpoint's"


@pytest.fixture
def first(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["--config", str(toy_config), "trainer.max_steps=2", "run_id=first"]) == 0
    capsys.readouterr()
    return toy_config.parent / "runs" / "first" / "checkpoints" / "steps_2"


def run(config: Path, start: Path, name: str, *words: str) -> Path:
    """A run from ``start`` on other numbers; returns its checkpoint."""
    argv = ["--config", str(config), "trainer.max_steps=2", f"run_id={name}", "datasets.train.0.seed=5"]
    assert main([*argv, f"trainer.pretrained_checkpoint={start}", *words]) == 0
    return config.parent / "runs" / name / "checkpoints" / "steps_2"


def statistics(checkpoint: Path) -> dict[str, object]:
    return json.loads((checkpoint / "norm_stats.json").read_text())


def test_statistics_are_the_datas_unless_kept(
    toy_config: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run(toy_config, first, "own")
    assert f"warning: unlike {first}, this run has {SAID}" in capsys.readouterr().out
    kept = run(toy_config, first, "kept", "trainer.keep_statistics=true")
    assert SAID not in capsys.readouterr().out
    assert statistics(own) != statistics(first)
    assert statistics(kept) == statistics(first)


def test_another_transform_is_said(toy_config: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy_config, first, "other", "framework.transforms=[{name: normalize, action: min_max}]")
    out = capsys.readouterr().out
    (said,) = (line for line in out.splitlines() if "the transform" in line)
    assert said.startswith(f"warning: unlike {first}, this run has the transform [{{'name': 'normalize'")
    assert "'action': 'min_max'" in said.partition(", not ")[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("cameras: [{new}]", "the cameras ['front'], not ['wrist']"),
        ("order", "the cameras in the order ['front', 'back'], not ['back', 'front']"),
    ],
)
def test_other_cameras_are_said(changed: str, said: str) -> None:
    from dataclasses import replace

    from vla_core.specs import CameraSpec
    from vla_core.stats import NormStats
    from vla_core.testing import make_spec
    from vla_core.transforms import Pipeline
    from vla_train.start import Start

    spec = make_spec(1)
    names = (["front"], ["wrist"]) if "order" not in changed else (["front", "back"], ["back", "front"])
    ours, theirs = (
        replace(spec, observation=replace(spec.observation, cameras=tuple(CameraSpec(n, 16, 16) for n in ns)))
        for ns in names
    )
    start = Start(Path("run/steps_2"), theirs, NormStats({}), [])
    lines = list(start.differences(Pipeline([], ours), kept=True))
    assert lines == [f"warning: unlike run/steps_2, this run has {said}"]


def test_the_start_names_processes_and_batch(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trainer.max_steps=1", "trainer.gradient_accumulation_steps=3", "trainer.batch_size=2"]
    assert main(["--config", str(toy_config), *words]) == 0
    expected = "1 process (one process), effective batch size 6 = 2 samples x 3 micro-batches x 1"
    assert expected in capsys.readouterr().out
