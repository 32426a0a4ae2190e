"""The table of benchmarks/closed_loop/libero: which result stands where, and whose sentence was followed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from vla_serve.rollouts.results import save, summarise
from vla_serve.rollouts.worker import Done, EpisodeResult

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
    write(tmp_path, "seed_0/other_libero_spatial_0_libero_spatial_1", episodes, instruction_from=said)
    write(tmp_path, "seed_0_second/plain", solved((3, 1)))
    out = tmp_path / "table.md"
    assert table("--results", str(tmp_path), "--out", str(out)).returncode == 0
    second = out.read_text().partition("### Second bowls among the demonstrations")[2]
    # What was not run has no place.
    assert "| libero_spatial_0 | 3/4 (30-95) | 4/4 (51-100) |" in second
    assert "told the sentence of" not in second
    lines = out.read_text().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[2:7]}
    assert rows["task"] == ["plain", "objects swapped", "expert, plain"]
    assert rows["libero_spatial_0"] == ["4/4 (51-100)", "0/4 (0-49)", "4/4 (51-100)"]
    assert [cell.split(" (")[0] for cell in rows["mean"]] == ["**75 %**", "**12 %**", "**100 %**"]
    assert "| libero_spatial_0 | libero_spatial_1 | 1/3 (6-79) | 2/3 (21-94) |" in lines
    assert "| all | any | 1/3 (6-79) | 2/3 (21-94) |" in lines
    assert any(line.endswith("1 of 4 episodes did not end") for line in lines)
    assert (
        "official initial states 0 to 3, 8 actions a request, wall time 12 s, 90 steps a success"
        in out.read_text()
    )


def test_of_six_things_on_the_floor_a_third_may_come(tmp_path: Path) -> None:
    usual, said, third = "libero_object_0", "libero_object_1", "libero_object_2"
    plain = [EpisodeResult(usual, n, n < 2, 90, achieved=(usual,) if n < 2 else ()) for n in range(3)]
    plain.append(EpisodeResult(usual, 3, False, 280, achieved=(third,)))
    write(tmp_path, "seed_0/plain", [*plain, *(EpisodeResult(said, n, True, 90) for n in range(4))])
    brought: list[tuple[str, ...]] = [(third,), (said, third), (usual,), ()]
    episodes = [EpisodeResult(usual, n, usual in done, 90, achieved=done) for n, done in enumerate(brought)]
    write(tmp_path, f"seed_0/other_{usual}_{said}", episodes, instruction_from=said)
    out = tmp_path / "table.md"
    assert table("--results", str(tmp_path), "--out", str(out)).returncode == 0
    text = out.read_text()
    assert (
        "| scene of | told the sentence of | brings what is named | brings the usual | brings a third |"
        in text
    )
    assert f"| {usual} | {said} | 1/4 (5-70) | 1/4 (5-70) | 1/4 (5-70) |" in text
    assert f"latency p50 6 ms, brought that of {third} in the scene of {usual} 1 times" in text


def test_a_task_is_told_the_sentences_that_fit_its_scene() -> None:
    asked = table("--others", *TASKS, "libero_spatial_2", "libero_object_3").stdout
    assert asked == "libero_spatial_0 libero_spatial_1\n"
    asked = table("--others", "libero_object_0", "libero_object_1", "libero_object_3").stdout
    pairs = [tuple(line.replace("libero_object_", "").split()) for line in asked.splitlines()]
    assert pairs == [("0", "1"), ("1", "0"), ("3", "0"), ("3", "1")]


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    asked = table("--results", str(tmp_path), "--out", str(tmp_path / "table.md"))
    assert asked.returncode == 2
    assert asked.stderr.strip().endswith("run 3_evaluate.sh")
