"""A preset chosen over another preset's options: options of a part that is no longer there are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from vla_core.errors import UserError
from vla_train.ablate.axes import parse_axis
from vla_train.presets import load_run_tree

RUN = """
framework:
  name: QwenPI
  horizon: 8
  vlm: {base_vlm: tiny, max_text_tokens: 24}
  head: {n_heads: 4, state_hidden: 128}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize(("name", "head"), [("QwenGR00T", "groot_flow"), ("QwenFast", "fast")])
def test_the_lost_heads_options_go_and_the_kept_backbones_stay(file: Path, name: str, head: str) -> None:
    said: list[str] = []
    tree = load_run_tree([file], [f"framework.name={name}", "framework.head.label=mine"], say=said.append)
    framework = tree.data["framework"]
    assert framework["name"] == name
    assert framework["head"]["name"] == head
    assert not {"n_heads", "state_hidden"} & set(framework["head"])
    assert framework["head"]["label"] == "mine"  # said for the new one
    assert framework["vlm"]["base_vlm"] == "tiny"
    assert framework["vlm"]["max_text_tokens"] == 24
    assert framework["horizon"] == 8
    expected = f"{name} has head {head}: options of head layerwise_fm are left out (n_heads, state_hidden)"
    assert said == [f"framework  {expected}"]


def test_a_later_file_that_names_a_preset(file: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("framework: {name: QwenGR00T, head: {dropout: 0.1}}\n")
    head = load_run_tree([file, later]).data["framework"]["head"]
    assert "n_heads" not in head
    assert (head["name"], head["dropout"]) == ("groot_flow", 0.1)
    head = load_run_tree([later, file]).data["framework"]["head"]
    assert (head["name"], head["n_heads"]) == ("layerwise_fm", 4)
    assert "dropout" not in head


def test_a_head_that_the_file_itself_names_stays(tmp_path: Path) -> None:
    path, said = tmp_path / "named.yaml", []
    path.write_text(RUN.replace("{n_heads", "{name: layerwise_fm, n_heads"))
    framework = load_run_tree([path], ["framework.name=QwenGR00T"], say=said.append).data["framework"]
    assert framework["head"]["name"] == "layerwise_fm"
    assert framework["head"]["n_heads"] == 4
    assert not said


def test_the_same_preset_again_changes_nothing(file: Path) -> None:
    assert load_run_tree([file], ["framework.name=QwenPI"]).data == load_run_tree([file]).data


@pytest.mark.parametrize("key", ["trainer.lr", "trainer.base_lr"])
def test_an_axis_of_learning_rates_is_told_its_key(key: str) -> None:
    with pytest.raises(UserError, match=r"did you mean 'trainer\.learning_rate\.base'"):
        parse_axis(f"{key}=1e-4,1e-3")


def test_a_backbones_options_stay_where_the_new_one_has_them(tmp_path: Path) -> None:
    path, said = tmp_path / "run.yaml", []
    path.write_text(
        RUN.replace("max_text_tokens: 24", "max_text_tokens: 24, tiny: {n_layers: 3, merge_size: 1}")
    )
    tree = load_run_tree([path], ["framework.name=PI0"], say=said.append)
    vlm = tree.data["framework"]["vlm"]
    assert (vlm["name"], vlm["base_vlm"], vlm["max_text_tokens"]) == ("paligemma", "tiny", 24)
    assert vlm["tiny"] == {"n_layers": 3}  # PaliGemma merges no patches
    assert said[0].endswith("options of vlm qwen2_5_vl are left out (tiny.merge_size)")
