"""The table of benchmarks/closed_loop/delay: which result stands where, and what is compared with what."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from vla_serve.rollouts.results import save, summarise
from vla_serve.rollouts.worker import Done, EpisodeResult

TABLE = Path(__file__).resolve().parent.parent / "benchmarks" / "closed_loop" / "delay" / "table.py"
SEEDS = {"reach": range(4), "door-open": range(4)}


def write(results: Path, name: str, solved: int, **settings: Any) -> None:
    """Results in which the first ``solved`` starts of each task succeed."""
    done = [
        Done(EpisodeResult(task, seed, seed < solved, 10), (5.0, 7.0))
        for task in SEEDS
        for seed in SEEDS[task]
    ]
    told = {"env": "metaworld", "episodes": 4, "seed": 0, "executed_steps": 16, **settings}
    (results / name).mkdir(parents=True)
    save(summarise(done, SEEDS, told, {"weights_digest": "abc"}, 12.0), results / name / "results.json")


def test_each_way_has_its_column_and_the_naive_one_is_the_reference(tmp_path: Path) -> None:
    write(tmp_path, "goes_on_0", 4)
    write(tmp_path, "goes_on_16", 2)
    write(tmp_path, "continues_16", 3)
    write(tmp_path, "ensemble_0", 4, executed_steps=1)
    (tmp_path / "wall.txt").write_text("train: 150 s\n")
    out = tmp_path / "table.md"
    command = [sys.executable, str(TABLE), "--results", str(tmp_path), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    lines = out.read_text().splitlines()
    assert [word in lines[0] for word in ("(naive)", "(RTC)", "(temporal ensembling)")] == [True] * 3
    none, late = (line.split(" | ") for line in lines[2:4])
    # Without a delay nothing is continued: the naive result stands in RTC's column too.
    assert [cell.partition(" ")[0] for cell in none[1:]] == ["100", "100", "100"]
    assert late[0] == "| 16 (200)"
    assert [cell.partition(" ")[0] for cell in late[1:]] == ["50", "75", "-"]
    assert "0.2 requests a step" in late[1]
    text = "\n".join(lines)
    late_again = re.search(r"\| 16 \(200\) \| (.*)", text[text.index("Against no delay:") :])
    assert late_again is not None
    assert re.match(r"-50 \(-\d+ to [-+]\d+\), 0 won, 4 lost \| -25 .*, 0 won, 2 lost \|", late_again[1])
    naive = text[text.index("Against naive at the same delay:") :]
    assert re.search(r"\| 16 \(200\) \| - \| \+25 \(.*\), 2 won, 0 lost \| - \|", naive)
    assert "16 steps from request to request but for ensembles" in text
    assert "- train: 150 s" in text
