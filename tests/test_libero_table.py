"""The table of benchmarks/closed_loop/libero: which result stands where, and whose sentence was followed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from vla_serve._rollout_results import save, summarise
from vla_serve._rollout_worker import Done, EpisodeResult

TABLE = Path(__file__).resolve().parent.parent / "benchmarks" / "closed_loop" / "libero" / "table.py"
TASKS = ("libero_spatial_0", "libero_spatial_1")


def write(results: Path, name: str, episodes: list[EpisodeResult], **settings: Any) -> None:
    """Results of starts 0 to 3."""
    tasks = dict.fromkeys((e.task for e in episodes), range(4))
    told = {"env": "libero", "episodes": 4, "seed": 0, "executed_steps": 8, **settings}
    out = results / name / "results.json"
    out.parent.mkdir(parents=True)
    save(summarise([Done(e, (5.0, 7.0)) for e in episodes], tasks, told, {}, 12.0), out)


def solved(counts: tuple[int, int]) -> list[EpisodeResult]:
    """So many of the four starts of each task."""
    return [
        EpisodeResult(task, seed, seed < count, 90, achieved=(task,) if seed < count else ())
        for task, count in zip(TASKS, counts, strict=True)
        for seed in range(4)
    ]


def table(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TABLE), *words], capture_output=True, text=True)


def test_variants_expert_and_other_sentences_have_their_places(tmp_path: Path) -> None:
    write(tmp_path, "seed_0/plain", solved((4, 2)))
    write(tmp_path, "seed_0/swap", solved((0, 1)))
    write(tmp_path, "expert/plain", solved((4, 4)))
    # One listens, two remember, one did not end.
    said, usual = "libero_spatial_1", "libero_spatial_0"
    brought = [(said,), (usual,), (usual,)]
    episodes = [EpisodeResult(usual, n, usual in done, 90, achieved=done) for n, done in enumerate(brought)]
    episodes.append(EpisodeResult(usual, 3, error="the server went away"))
    write(tmp_path, "seed_0/other_libero_spatial_0", episodes, instruction_from=said)
    write(tmp_path, "seed_0_second/plain", solved((3, 1)))
    out = tmp_path / "table.md"
    assert table("--results", str(tmp_path), "--out", str(out)).returncode == 0
    second = out.read_text().partition("### Second bowls among the demonstrations")[2]
    assert "| libero_spatial_0 | 3/4 (30-95) | - | - | 4/4 (51-100) | - |" in second
    assert "| libero_spatial_0 | libero_spatial_1 | - | - |" in second
    lines = out.read_text().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[2:7]}
    assert rows["task"] == ["plain", "reworded", "objects swapped", "expert, plain", "expert, swapped"]
    assert rows["libero_spatial_0"] == ["4/4 (51-100)", "-", "0/4 (0-49)", "4/4 (51-100)", "-"]
    assert [cell.split(" (")[0] for cell in rows["mean"]] == ["**75 %**", "-", "**12 %**", "**100 %**", "-"]
    assert "| libero_spatial_0 | libero_spatial_1 | 1/3 (6-79) | 2/3 (21-94) |" in lines
    assert "| all | | 1/3 (6-79) | 2/3 (21-94) |" in lines
    assert any(line.endswith("1 episodes did not end") for line in lines)
    assert (
        "official initial states 0 to 3, 8 actions a request, wall time 12 s, 90 steps a success"
        in out.read_text()
    )


def test_a_task_is_told_the_sentence_that_fits_its_second_bowl() -> None:
    asked = table("--others", *TASKS, "libero_spatial_2", "libero_object_3").stdout
    assert asked == "libero_spatial_0 libero_spatial_1\n"


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    asked = table("--results", str(tmp_path), "--out", str(tmp_path / "table.md"))
    assert asked.returncode == 2
    assert asked.stderr.strip().endswith("run 3_evaluate.sh")
