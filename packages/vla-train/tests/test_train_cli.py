"""What a user types, and what a user mistypes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.command_line import make_parser, overrides_of, split_configs
from vla_train.commands import COMMANDS
from vla_train.presets import list_presets, load_run_tree


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run, expect exit code 2 and exactly one line on stderr; return it."""
    assert main(argv) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    assert err.startswith("vla-train: ")
    return err


def test_a_run_from_the_command_line(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(toy_config), "trainer.max_steps=4", "--run_id", "mine", "--seed=3"]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    run_dir = toy_config.parent / "runs" / "mine"
    assert "steps_4" in out
    assert (run_dir / "report.html").exists()
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert resolved["seed"] == 3
    assert resolved["framework"]["head"] == {"name": "fake", "noise_scale": 0.1}
    VLAPolicy.from_pretrained(run_dir / "checkpoints" / "steps_4")
    # The resolved config alone gives the same run again.
    assert main(["--config", str(run_dir / "config.yaml"), "run_id=again"]) == 0


def test_spellings_ofoverrides_of() -> None:
    assert overrides_of(["a.b=1", "--c.d", "2", "--e=x=y"]) == ["a.b=1", "c.d=2", "e=x=y"]
    argv = ["--config", "a.yaml", "b.yaml", "x=1", "--y", "2", "--config_yaml", "c.yaml"]
    known, words = split_configs(argv)
    assert known == ["--config", "a.yaml", "b.yaml", "--config_yaml", "c.yaml"]
    assert words == ["x=1", "--y", "2"]
    assert make_parser().parse_args(known).config == [Path("a.yaml"), Path("b.yaml"), Path("c.yaml")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.max_step=3", "unknown key 'trainer.max_step' (did you mean 'max_steps'?)"),
        ("trainer.max_steps=many", "'trainer.max_steps'"),
        ("trainer.schedule=lineal", "trainer.schedule"),
        ("framework.name=QwenP1", "did you mean 'QwenPI'"),
        ("framework.head.noise=1", "unknown key 'framework.head.noise' (did you mean 'noise_scale'?)"),
        ("framework.vlm.name=fakes", "did you mean 'fake'"),
        ("framework.horizon=0", "'framework.horizon': must be >= 1, got 0"),
        ("framework.use_geometric_branch=true", "framework.geometry and framework.fusion"),
        ("trackers=[wandbb]", "no tracker 'wandbb' (did you mean 'wandb'?)"),
        ("trainer.reload_modules=[head]", "pretrained_checkpoint is not"),
        ("datasets.val_fraction=0.99", "leaves no episode"),
        ("trainer.max_steps", "no such config file"),
    ],
)
def test_mistakes_are_one_line(
    toy_config: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    assert expected in fails(capsys, "--config", str(toy_config), override)


def test_a_wrong_key_names_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: None
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("framework: {name: QwenPI}\ndatasets:\n  train: [{name: toy}]\n  val_fractoin: 0.2\n")
    err = fails(capsys, "--config", str(path))
    assert f"{path}:4:" in err
    assert "did you mean 'val_fraction'" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lst", "command line: unknown option --lst (did you mean --list?)"),
        ("--dry-run --config x.yaml", "command line: unknown option --dry-run (did you mean --dry_run?)"),
        ("--confg x.yaml", "command line: unknown option --confg (did you mean --config?)"),
        ("--config", "argument --config/--config_yaml: expected at least one argument; see vla-train --help"),
        ("ablate --bse x.yaml", "command line: unknown option --bse (did you mean --base?)"),
        ("ablate --axis foo", "--base is missing, e.g. vla-train ablate --base configs/ablations/base.yaml"),
        ("ablate --axis", "--base is missing, e.g. vla-train ablate --base configs/ablations/base.yaml"),
        ("ablate --base x.yaml --seed 3", "--out is missing, e.g. --out runs/fusions"),
        (
            "report --rolout x",
            "report: unknown option --rolout (did you mean --rollout?); see vla-train report --help",
        ),
        ("pictures x --stp 3", "pictures: unknown option --stp (did you mean --step?)"),
        ("fit-fast --confg x.yaml", "command line: unknown option --confg (did you mean --config?)"),
        (
            "import-starvla x --basevlm y",
            "import-starvla: unknown option --basevlm (did you mean --base_vlm?)",
        ),
        ("import-lerobot x --rbot y", "import-lerobot: unknown option --rbot (did you mean --robot?)"),
    ],
)
def test_options_with_a_letter_wrong(capsys: pytest.CaptureFixture[str], words: str, expected: str) -> None:
    assert fails(capsys, *words.split()).startswith(f"vla-train: {expected}")


def test_files_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_config: Path
) -> None:
    assert "no such config file" in fails(capsys, "--config", str(tmp_path / "no.yaml"))
    assert "--config is missing" in fails(capsys)
    assert "needs a value" in fails(capsys, "--config", str(toy_config), "--seed")
    missing = f"datasets.train=[{{name: lerobot, path: {tmp_path}/nothing}}]"
    err = fails(capsys, "--config", str(toy_config), missing)
    assert f"{tmp_path}/nothing" in err


def test_a_resumed_run_says_where_it_goes_on(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(toy_config), "trainer.schedule=constant"]
    assert main([*words, "trainer.max_steps=2"]) == 0
    first = capsys.readouterr().out
    assert "goes on" not in first
    for steps, said in (
        (3, "goes on after step 2 of 3"),
        (3, "goes on after step 3 and trainer.max_steps=3: none"),
    ):
        assert main([*words, f"trainer.max_steps={steps}", "trainer.resume=true"]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert "trains from scratch" not in out


@pytest.mark.parametrize("mode", [(), ("--dry_run",)])
def test_a_folder_of_runs_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_config: Path, mode: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    err = fails(capsys, "--config", str(toy_config), f"run_root_dir={tmp_path}/file/runs", *mode)
    assert f"run_root_dir: {tmp_path}/file/runs/toy cannot be written ({tmp_path}/file: a file)" in err


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:300]), "it may be truncated"),
        (lambda p: p.write_bytes(b"no weights"), "it may be truncated"),
        (
            lambda p: (p.parent / "meta.json").unlink(),
            "not a checkpoint of this project, it has no meta.json",
        ),
    ],
)
def test_a_damaged_checkpoint_to_start_from(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, expected: str
) -> None:
    assert main(["--config", str(toy_config), "trainer.max_steps=1", "run_id=first"]) == 0
    weights = next((tmp_path / "runs" / "first").glob("checkpoints/steps_1/model.safetensors"))
    damage(weights)
    word = f"trainer.pretrained_checkpoint={weights.parent}"
    capsys.readouterr()
    assert expected in fails(capsys, "--config", str(toy_config), "run_id=second", word)


def test_a_checkpoint_of_another_action_dim(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(toy_config), "trainer.max_steps=1", "run_id=first"]) == 0
    folder = tmp_path / "runs" / "first" / "checkpoints" / "steps_1"
    state = load_file(folder / "model.safetensors")
    name = "head.out.bias"  # 4 steps of 2 dims; now of 3
    state[name] = torch.zeros(12)
    save_file(state, folder / "model.safetensors")
    capsys.readouterr()
    line = fails(
        capsys, "--config", str(toy_config), "run_id=second", f"trainer.pretrained_checkpoint={folder}"
    )
    assert f"'{name}' has shape (12,)" in line
    assert "the policy has (8,)" in line


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in list_presets())
    assert "layerwise_fm" in out
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0


def test_another_part_starts_afresh_and_the_same_part_is_merged(toy_config: Path) -> None:
    base = "framework.name=QwenPI"
    tree = load_run_tree([toy_config], [base, "framework.head.name=mlp_regression"])
    assert tree.data["framework"]["head"]["name"] == "mlp_regression"
    config = toy_config.parent / "merge.yaml"
    config.write_text("framework: {name: QwenPI, vlm: {base_vlm: tiny}}\ndatasets: {train: [{name: toy}]}\n")
    vlm = load_run_tree([config]).data["framework"]["vlm"]
    assert vlm == {"name": "qwen2_5_vl", "base_vlm": "tiny"}


def test_an_override_reaches_into_the_lists_of_a_preset(toy_config: Path) -> None:
    config = toy_config.parent / "bare.yaml"
    config.write_text("framework: {name: QwenPI}\ndatasets: {train: [{name: toy}]}\n")
    tree = load_run_tree([config], ["framework.transforms.0.height=64"])
    assert tree.data["framework"]["transforms"][0] == {"name": "resize", "height": 64, "width": 224}
    assert tree.where("framework.transforms.0.height") == "command line: "


def test_what_fsdp2_alone_needs_waits_for_it() -> None:
    code = "import sys, vla_train.runs; sys.exit('torch.distributed.tensor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"vla-train {name} --help" in said for name in COMMANDS)
