"""Starting from a checkpoint: whose statistics hold, and what is said of the rest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from vla_core.errors import UserError
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


def test_another_order_of_the_same_numbers_is_said() -> None:
    from dataclasses import replace

    from vla_core.specs import ActionSpec, GroupSpec
    from vla_core.stats import NormStats
    from vla_core.testing import make_spec
    from vla_core.transforms import Pipeline
    from vla_train.start import Start

    arm, grip = GroupSpec("arm", 3, "rad"), GroupSpec("grip", 1, "1", gripper="open_positive")
    spec = replace(make_spec(1), action=ActionSpec((arm, grip), 4, 20.0))

    def said(*groups: GroupSpec, hz: float = 20.0) -> list[str]:
        theirs = replace(spec, action=ActionSpec(groups, 4, hz))
        lines = Start(Path("run"), theirs, NormStats({}), []).differences(Pipeline([], spec), kept=True)
        return [line.removeprefix("warning: unlike run, this run has ") for line in lines]

    assert said(arm, grip) == []
    assert said(grip, arm) == [
        "the action groups in the order arm (3), grip (1), not grip (1), arm (3)",
    ]
    assert said(replace(arm, name="hand"), grip) == [
        "the action groups arm (3), grip (1), not hand (3), grip (1)"
    ]
    changed = replace(arm, unit="deg", representation="delta"), replace(grip, gripper="close_positive")
    assert said(*changed, hz=10.0) == [
        "the action group 'arm' with unit rad, not deg",
        "the action group 'arm' with representation absolute, not delta",
        "the action group 'grip' with gripper open_positive, not close_positive",
        "steps of 20 Hz, not 10",
    ]


def test_a_robot_does_not_get_another_ones_weights(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robots = [{"name": "counted", "robot": name} for name in ("a", "b")]
    head = {
        "name": "groot_flow",
        "size": "custom",
        "width": 16,
        "n_heads": 2,
        "n_blocks": 2,
        "output_width": 8,
    }
    head |= {"repeated_diffusion_steps": 1}
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"name": "QwenGR00T", "head": head}
    node["datasets"] = {"train": robots, "val_fraction": 0.0}
    toy_config.write_text(yaml.safe_dump(node))
    assert main(["--config", str(toy_config), "trainer.max_steps=1", "run_id=both"]) == 0
    start = toy_config.parent / "runs" / "both" / "checkpoints" / "steps_1"
    node["datasets"]["train"] = robots[::-1]
    toy_config.write_text(yaml.safe_dump(node))
    argv = ["--config", str(toy_config), "trainer.max_steps=1", f"trainer.pretrained_checkpoint={start}"]
    capsys.readouterr()
    assert main([*argv, "run_id=swapped"]) == 2
    assert (
        f"the head has weights for each robot, by number; 'b' is 0 here and 1 in {start} (a, b): list the "
        "data sets of datasets.train so that it is a, b"
    ) in " ".join(capsys.readouterr().err.split())
    # What is not of the head knows no robot.
    assert main([*argv, "run_id=backbone", "trainer.reload_modules=[vlm]"]) == 0


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (["a", "b"], "so that it is b, a"),
        (["a", "c", "new"], "so that it is new, a, c"),
        (["c", "new", "a"], "so that it is new, a, c"),
        (["a", "c"], "no order of datasets.train helps, as b is not trained here"),
        (["new", "c"], "no order of datasets.train helps, as b, a are not trained here"),
    ],
)
def test_the_advice_about_robots_by_number_can_be_followed(ours: list[str], said: str) -> None:
    from vla_train.start import check_numbers

    with pytest.raises(UserError, match=re.escape(said)):
        check_numbers("run", ["b", "a", "c"], ours, ["vlm"])


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


def test_what_is_taken_is_said_tensor_by_tensor(
    toy_config: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = len(load_file(first / "model.safetensors"))
    run(toy_config, first, "all")
    out = capsys.readouterr().out
    assert f"weights of {first}/model.safetensors: {own} of {own} tensors are taken (head.*, vlm.*)\n" in out
    run(toy_config, first, "part", "trainer.reload_modules=['vlm\\.layers\\.0\\..*']")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("weights of "))
    taken, built, unused = line.partition(": ")[2].split("; ")
    assert "are taken (vlm.layers.0.*)" in taken
    assert "start as built (" in built
    assert "of the checkpoint's are not used (" in unused
    assert sum(int(part.split()[0]) for part in (taken, built)) == own
    assert built.split()[0] == unused.split()[0]


def test_all_that_does_not_fit_is_said_at_once_with_what_does(
    toy_config: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = ["--config", str(toy_config), "run_id=wider", f"trainer.pretrained_checkpoint={first}"]
    wider.append('framework.head={"name": "mlp_regression", "width": 33}')
    assert main(wider) == 2
    err = capsys.readouterr().err
    assert "tensors asked for do not fit" in err
    assert "trainer.reload_modules=[vlm] takes modules that fit" in err
    assert main([*wider, "trainer.reload_modules=[vlm]"]) == 0
    assert "start as built (head.*)" in capsys.readouterr().out
    assert main([*wider[:2], "run_id=name", wider[3], "trainer.reload_modules=[hed]"]) == 2
    assert "the policy has no module 'hed' (did you mean 'head'?)" in capsys.readouterr().err


def test_a_run_goes_on_without_the_checkpoint_that_it_began_with(
    toy_config: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it did is in the state."""
    later = run(toy_config, first, "later")
    shutil.rmtree(first.parents[1])
    capsys.readouterr()
    run(toy_config, first, "later", "trainer.resume=true", "trainer.max_steps=4", "trainer.schedule=constant")
    assert "weights of " not in capsys.readouterr().out
    assert (later.parent / "steps_4").is_dir()
    told = json.loads((later.parents[1] / "run.json").read_text())
    assert told["started_from"]["path"] == str(first)
