"""What the README shows is true: its example runs, its commands and YAML are valid, its names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import vla_train
import yaml
from vla_core.config import build_config
from vla_train.cli import main
from vla_train.command_line import overrides_of, split_configs
from vla_train.config import RunConfig
from vla_train.presets import list_presets, load_preset, load_run_tree
from vla_train.spellings import load_run

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def test_the_example_runs(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    for old, new in {  # a made-up data set, for the wheel has none, and a few steps
        '{"name": "lerobot", "path": "examples/data/metaworld_faucet"}': '{"name": "toy"}',
        '"max_steps": 100': '"max_steps": 2',
    }.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "steps_2 (4, 2)"


def test_commands_are_valid(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy_config.parent)
    for name in ("configs/quickstart.yaml", "my.yaml", "more.yaml", "starvla.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(toy_config.read_text())
    lines = [line.partition("  #")[0] for block in blocks("") for line in block.splitlines()]
    ours = [line for line in lines if re.search(r"vla-train --|-m vla_train", line)]
    assert len(ours) == 10
    for line in ours:
        known, words = split_configs(shlex.split(re.split(r"vla-train|-m vla_train", line)[1]))
        if known == ["--list"]:
            assert main(known) == 0
            continue
        files = [Path(word) for word in known if not word.startswith("--")]
        tree = load_run(files, overrides_of(words))
        build_config(RunConfig, tree.data, "", tree)


def test_the_yaml_is_valid(toy_config: Path) -> None:
    node = yaml.safe_load(toy_config.read_text())
    for block in blocks("yaml"):
        node["trainer"] |= yaml.safe_load(block)["trainer"]
    toy_config.write_text(yaml.safe_dump(node))
    tree = load_run_tree([toy_config])
    assert build_config(RunConfig, tree.data, "", tree).trainer.learning_rates()["head"] == 2e-4


def test_the_frameworks_named_exist() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| `(\w+)`", README, re.MULTILINE))
    assert {"QwenOFT", "QwenPI"} <= shown.keys() <= list_presets().keys()
    assert {name: load_preset(name)["head"]["name"] for name in shown} == shown


def test_names_and_files_exist() -> None:
    for name in vla_train.__all__:
        assert getattr(vla_train, name) is not None
        assert f"`{name}`" in README
    source = Path(vla_train.__file__).parent
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## Files")[2], re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`([\w.]+)/?`", row)}
    assert len(named) > 15
    assert not [name for name in named if not (source / name).exists()]
