"""A mistake of a job on two ranks is one line on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from vla_train.testing.ranks import Ended, run_ranks

PROGRAM = Path(__file__).with_name("rank_program.py")
MET = """
import os, sys
from torch import distributed
from vla_train.guards import last_words
last_words.WAIT_S = 200.0 if "way" in sys.argv else 1.0
distributed.init_process_group("gloo")
if os.environ["RANK"] in sys.argv[1]:
    last_words.say(f"no disk on {os.environ['RANK']}" if "own" in sys.argv else "no disk")
elif "way" in sys.argv:
    last_words.give_way(last_words._store(), 0, 1)
    assert last_words._read(last_words._store(), "1") == "no disk"
distributed.barrier()
"""


def lines(ended: list[Ended]) -> list[str]:
    said = "".join(rank.said for rank in ended)
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("vla-train")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["01"], ["vla-train: no disk"]),
        (["1"], ["vla-train: rank 1: no disk"]),
        # The first knows that it has nothing to say: nobody waits for it.
        (["1", "way"], ["vla-train: rank 1: no disk"]),
        (["01", "own"], ["vla-train: no disk on 0", "vla-train: rank 1: no disk on 1"]),
    ],
)
def test_ranks_that_have_met_compare_what_they_say(words: list[str], says: list[str]) -> None:
    ended = run_ranks([sys.executable, "-c", MET, *words])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert lines(ended) == says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        # Before the ranks meet, when both have, and in the middle of the training.
        (["trainer.no_key=1"], "trainer.no_key"),
        (["trainer.freeze_modules=[nothing]"], "nothing"),
        (["trainer.learning_rate.base=1e30", "trainer.warmup_steps=0"], "is not finite at step"),
    ],
)
def test_a_mistake_of_all_ranks_is_said_once(toy_config: Path, words: list[str], says: str) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    plan = toy_config.parent / "plan.json"
    plan.write_text(json.dumps([{"name": "run", "argv": ["--config", str(toy_config), *words]}]))
    ended = run_ranks([sys.executable, str(PROGRAM), str(plan)], folder=toy_config.parent)
    (line,) = lines(ended)
    assert says in line
    assert not line.startswith("vla-train: rank")
    assert ended[0].code == 2
