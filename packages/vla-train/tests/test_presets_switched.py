"""A preset chosen over another preset's options: options of a part that is no longer there are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.resolve import resolve_part
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
    expected = f"framework.head is {head}: options of layerwise_fm are left out (n_heads, state_hidden)"
    assert said == [f"config  {expected}"]


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
    assert said[0].endswith("options of qwen2_5_vl are left out (tiny.merge_size)")


NAMED = """
framework:
  name: QwenPI
  vlm: {base_vlm: tiny, vision: conv_vit}
  head: {n_heads: 4}
  geometry: {name: tiny, encoder_depth: 1}
  fusion: {name: gated, reduction: dim}
  transforms:
    - {name: resize, height: 64, width: 64}
    - {name: normalize, state: q99, action: min_max}
datasets:
  train: [{name: lerobot, path: frames, weight: 2, fps: 5}]
  mixtures: {both: [{name: lerobot, path: frames, fps: 5}, {name: arrays, path: more}]}
trainer:
  evaluation: {env_options: {image_size: 128, start: task}}
"""


@pytest.mark.parametrize(
    ("word", "where", "left", "line"),
    [
        ("framework.head.name=fast", "framework.head", {"name": "fast"},
         "framework.head is fast: options of layerwise_fm are left out (n_heads)"),
        ("framework.head={name: fast, scale: 5}", "framework.head", {"name": "fast", "scale": 5},
         "framework.head is fast: options of layerwise_fm are left out (n_heads)"),
        ("framework.vlm.name=paligemma", "framework.vlm", {"name": "paligemma", "base_vlm": "tiny"},
         "framework.vlm is paligemma: options of qwen2_5_vl are left out (vision)"),
        ("framework.geometry.name=dinov2", "framework.geometry", {"name": "dinov2"},
         "framework.geometry is dinov2: options of tiny are left out (encoder_depth)"),
        ("framework.fusion.name=prefix", "framework.fusion", {"name": "prefix"},
         "framework.fusion is prefix: options of gated are left out (reduction)"),
        ("framework.transforms.1.name=relative_actions", "framework.transforms.1",
         {"name": "relative_actions"},
         "framework.transforms.1 is relative_actions: options of normalize are left out (state, action)"),
        ("datasets.train.0.name=arrays", "datasets.train.0",
         {"name": "arrays", "path": "frames", "weight": 2},
         "datasets.train.0 is arrays: options of lerobot are left out (fps)"),
        ("datasets.mixtures.both.0.name=arrays", "datasets.mixtures.both.0",
         {"name": "arrays", "path": "frames"},
         "datasets.mixtures.both.0 is arrays: options of lerobot are left out (fps)"),
        ("trainer.evaluation.env=libero", "trainer.evaluation.env_options", {},
         "trainer.evaluation.env is libero: options of metaworld are left out (image_size, start)"),
    ],
)  # fmt: skip
def test_one_part_named_anew(
    tmp_path: Path, word: str, where: str, left: dict[str, object], line: str
) -> None:
    path, said = tmp_path / "named.yaml", []
    path.write_text(NAMED)
    node = load_run_tree([path], [word], say=said.append).data
    for key in where.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    assert node == left
    assert said == [f"config  {line}"]


def test_one_part_named_anew_by_a_later_file(file: Path, tmp_path: Path) -> None:
    later, said = tmp_path / "later.yaml", []
    later.write_text("framework: {head: {name: fast, scale: 5}}\n")
    tree = load_run_tree([file, later], say=said.append)
    assert tree.data["framework"]["head"] == {"name": "fast", "scale": 5}
    assert len(said) == 1
    assert not any("n_heads" in key for key in tree.origins)
    # The other way round the first file's n_heads are those of no lost part: it names the preset alone.
    assert load_run_tree([later, file]).data["framework"]["head"]["scale"] == 5


def test_what_comes_with_the_new_name_is_never_left_out(file: Path, tmp_path: Path) -> None:
    later, said = tmp_path / "later.yaml", []
    later.write_text("framework: {head: {name: fast, n_heads: 4}}\n")
    for files, words in (
        ([file], ["framework.head.n_heads=4", "framework.head.name=fast"]),
        ([file, later], []),
        ([file, later], ["framework.vlm.max_text_tokens=32"]),
    ):
        tree = load_run_tree(files, words, say=said.append)
        assert tree.data["framework"]["head"]["n_heads"] == 4
        framework = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
        with pytest.raises(ConfigError, match=r"unknown key 'framework\.head\.n_heads'"):
            resolve_part("vla.heads", framework.head, "framework.head", tree)


def test_an_unknown_name_leaves_nothing_out(file: Path) -> None:
    said: list[str] = []
    tree = load_run_tree([file], ["framework.head.name=fsat"], say=said.append)
    assert tree.data["framework"]["head"]["n_heads"] == 4  # the error will name the head, not its options
    assert not said


def test_the_same_part_named_again_changes_nothing(file: Path) -> None:
    head = load_run_tree([file], ["framework.head.name=layerwise_fm"]).data["framework"]["head"]
    assert (head["n_heads"], head["state_hidden"]) == (4, 128)


def test_what_a_lost_option_refers_to_is_not_asked_for(file: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.yaml"
    first.write_text(RUN.replace("n_heads: 4", "n_heads: '${framework.vlm.tiny.n_layers}'"))
    last = ["framework.vlm.tiny.n_layers=3"]
    assert load_run_tree([first], last).data["framework"]["head"]["n_heads"] == 3
    assert (
        "n_heads" not in load_run_tree([first], [*last, "framework.head.name=fast"]).data["framework"]["head"]
    )


WHOLE = "framework: {name: Mine, horizon: 4, vlm: {name: qwen2_5_vl}, head: {name: mlp_regression}}\n"


def test_a_framework_that_names_its_parts_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WHOLE)
    framework = load_run_tree([path], ["framework.head.name=adapter"]).data["framework"]
    parts = {"vlm": {"name": "qwen2_5_vl"}, "head": {"name": "adapter"}}
    assert framework == {"name": "Mine", "horizon": 4, **parts}  # nothing of any preset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            WHOLE.replace("Mine", "QwenPy"),
            r"framework.name: no framework 'QwenPy' \(did you mean 'QwenPI'\?\)",
        ),
        (WHOLE.replace("vlm: {name: qwen2_5_vl}, ", ""), r"framework.name: no framework 'Mine' \(known: "),
        (WHOLE.replace("{name: mlp_regression}", "{}"), r"framework.name: no framework 'Mine' \(known: "),
    ],
)
def test_a_name_that_is_no_presets_and_parts_that_are_not_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_run_tree([path])
