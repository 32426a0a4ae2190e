"""Co-training as docs/cotraining.md has it: the shipped conversations, config and commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from vla_core.policy import VLAPolicy
from vla_data import VLMConversations, VLMConversationsConfig
from vla_train.cli import main

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "conversations"
PAGE = (ROOT / "docs" / "cotraining.md").read_text()
SHORT = [
    "trainer.max_steps=2",
    "trainer.batch_size=2",
    "datasets.vlm.batch_size=3",
    "trainer.threads=1",
    "trainer.log_every=1",
    "trainer.device=cpu",
    "trainer.val_samples=2",
    "datasets.train.0.cache=none",
    "datasets.ram_cache=false",
    "trackers=[jsonl]",
]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def commands() -> list[list[str]]:
    """What the page has one type, of the shipped config, without comments."""
    text = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[1:] for line in words if "configs/cotrain_tiny.yaml" in line]


def test_the_shipped_conversations_are_what_their_page_says() -> None:
    talks = VLMConversations(VLMConversationsConfig(registry=str(DATA / "registry.yaml")))
    assert len(talks) == 24
    counts = [len(talks[i].images) for i in range(24)]
    assert [counts.count(n) for n in (0, 1, 2)] == [4, 16, 4]
    assert any(len(talks[i].turns) == 4 for i in range(24))
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 100_000


def test_the_backbone_alone(tmp_path: Path) -> None:
    argv = [
        "--config",
        "configs/cotrain_tiny.yaml",
        "trainer.job=vlm",
        "run_id=a",
        f"run_root_dir={tmp_path}",
    ]
    assert main([*argv, *SHORT]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss/vlm_loss"] > 0
    assert (tmp_path / "a" / "report.html").exists()


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path: Path) -> None:
    found = commands()
    assert len(found) == 5
    for i, argv in enumerate(found):
        words = [
            w.replace("runs/talker/checkpoints/steps_200", f"{tmp_path}/talker/checkpoints/steps_2")
            for w in argv
        ]
        named = [] if any(word.startswith("run_id=") for word in words) else [f"run_id=run{i}"]
        assert main([*words, *named, *SHORT, f"run_root_dir={tmp_path}"]) == 0
    both = [json.loads(line) for line in (tmp_path / "run0" / "metrics.jsonl").read_text().splitlines()]
    for line in both[:2]:
        parts = [value for key, value in line.items() if key.startswith("loss/") and key != "loss/vlm_loss"]
        assert line["loss"] == pytest.approx(sum(parts) + 0.1 * line["loss/vlm_loss"], rel=1e-5)
    assert VLAPolicy.from_pretrained(tmp_path / "run0" / "checkpoints" / "steps_2").framework == "QwenPI"
