"""``python -m vla_train.smoke``: what it prints, and one line for a mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_train import smoke
from vla_train.presets import list_presets
from vla_train.testing.sizes import framework_tree
from vla_train.testing.trace import build, count_flop, recorded, shapes, training_batch, without_storage


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_built_and_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}, size tiny: cpu")
    for heading in ("parts", "parameters", "shapes", "  text tokens", "  visual tokens", "  hidden states"):
        assert f"\n{heading}" in text, heading
    loss = re.search(r"^loss (\S+) \(", text, re.MULTILINE)
    assert loss
    assert math.isfinite(float(loss[1]))
    chunk = re.search(r"predicted chunk: (\d+) steps of 7 dims at 10 Hz, un-normalised", text)
    assert chunk
    assert int(chunk[1]) == framework_tree(name, "tiny").data["framework"]["horizon"]
    assert re.search(r"position \[m, absolute\]\n +0( +-?\d+\.\d{4}){3}\n", text)


def test_the_commands_of_the_readme_are_valid() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    commands = re.findall(
        r"^uv run python -m vla_train\.smoke (\w+)(?: --size (full))?(.*)$", text, re.MULTILINE
    )
    assert len(commands) == 3
    for name, size, words in commands:
        tree = framework_tree(name, "full" if size else "tiny", words.split())
        build_config(FrameworkConfig, tree.data["framework"], "framework", tree)


def test_parameters_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main(["QwenMapAnythingPI"]) == 0
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^  (vlm|geometry|fusion|head|all) +([\d,]+ +[\d,]+)$", text, re.MULTILINE))
    counts = {name: [int(n.replace(",", "")) for n in row.split()] for name, row in rows.items()}
    for i in (0, 1):
        assert counts["all"][i] == sum(counts[part][i] for part in ("vlm", "geometry", "fusion", "head"))
    assert counts["geometry"][1] == 0 < counts["geometry"][0]
    assert re.search(r"^  geometry +tokens float32 \[2, 2, 8, 8, 64\]$", text, re.MULTILINE)
    assert re.search(r"^  fused +visual.tokens float32 \[2, 98, 64\]$", text, re.MULTILINE)


def test_overrides_win_over_the_tiny_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["QwenPI", "head.width=48", "--size", "tiny", "framework.vlm.tiny.n_layers=3", "horizon=5"]
    assert smoke.main([*words, "head.n_blocks=null"]) == 0
    text = capsys.readouterr().out
    assert "predicted chunk: 5 steps" in text
    assert "hidden[1] ... hidden[3] (3) float32" in text
    assert "width: 48" in text


def test_full_has_shapes_and_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    # The same path with a small backbone: the published sizes take a quarter of a minute.
    words = ["QwenMapAnythingPI", "--size", "full", "vlm.base_vlm=tiny", "geometry.size=tiny"]
    assert smoke.main([*words, "head.width=64", "vlm.tiny.patch_size=16"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("QwenMapAnythingPI, size full: meta")
    assert re.search(r"^  hidden states +hidden\[1\] \.\.\. hidden\[4\] \(4\) float32", text, re.MULTILINE)
    assert re.search(r"^  loss +\d+\.\d{3} T\n  chunk +\d+\.\d{3} T$", text, re.MULTILINE)
    assert "predicted chunk" not in text


def test_full_takes_the_published_size_of_the_preset() -> None:
    vlm = {name: framework_tree(name, "full").data["framework"]["vlm"] for name in ("QwenPI", "QwenOFT")}
    assert {node["base_vlm"] for node in vlm.values()} == {"3b"}
    other = framework_tree("QwenPI", "full", ["vlm.base_vlm=7b"])
    assert other.data["framework"]["vlm"]["base_vlm"] == "7b"


def test_flop_counted_on_shapes_are_those_of_real_tensors() -> None:
    small = ["vlm.tiny.n_layers=1", "vlm.tiny.vision_depth=1", "vlm.tiny.patch_size=16", "head.width=32"]
    tree = framework_tree("QwenOFT", "full", ["vlm.base_vlm=tiny", *small])
    real, shapes_only = build(tree, "tiny").eval(), build(tree, "full").eval()
    with without_storage(shapes_only):
        counted = count_flop(shapes_only)
    assert counted == count_flop(real)
    assert counted[0] == counted[1]  # a deterministic head computes the same for a loss and a chunk
    assert counted[0]


def test_recording_leaves_no_trace() -> None:
    policy = build(framework_tree("QwenOFT", "tiny"), "tiny")
    before = set(vars(policy.model.vlm))
    with recorded(policy) as seen:
        policy.model(training_batch(policy, 1))
    assert set(vars(policy.model.vlm)) == before
    assert not policy.model.vlm._forward_hooks
    assert "visual tokens" in seen
    assert any(line.startswith("grid = ") for line in shapes(seen["visual tokens"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["QwenPj"], "no framework 'QwenPj' (did you mean 'QwenPI'?)"),
        (["nothing like it"], "known: MapAnything"),
        (["QwenPI", "head.n_block=1"], "command line: unknown key 'framework.head.n_block' (did you mean"),
        (["QwenPI", "trainer.max_steps=3"], "unknown key 'framework.trainer'"),
        (["QwenPI", "head.n_blocks=many"], "'framework.head.n_blocks'"),
        (["QwenPI", "head.name=layerwise"], "framework.head.name: no 'layerwise' in vla.heads (did you mean"),
        (["QwenPI", "n_blocks"], "is not of the form key=value"),
        (["QwenPI", "vlm=3"], "'framework.vlm': expected a mapping, got 3"),
        (["QwenPI", "geometry={name: tiny}"], "framework.fusion is not set"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_part_the_user_names_starts_from_its_own_defaults() -> None:
    tree = framework_tree("QwenPI", "tiny", ["head.name=mlp_regression"])
    head = tree.data["framework"]["head"]
    assert head["name"] == "mlp_regression"
    assert "steps" not in head
