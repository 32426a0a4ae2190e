"""The command that a run notes, and the script that starts it again: launcher, processes, and no resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vla_train.cli import main
from vla_train.monitoring.rerun import command, launcher, script
from vla_train.report._run import Metrics

ARGV = ["--config", "my config.yaml", "run_id=x"]
TORCHRUN = ["/venv/bin/python", "/venv/bin/torchrun", "--nproc_per_node", "2", "-m", "vla_train"]
ACCELERATE = [
    "/venv/bin/python3.12",
    "/venv/bin/accelerate",
    "launch",
    "--config_file",
    "z.yaml",
    "-m",
    "vla_train",
]


PROGRAM = """
import importlib.util, sys
from vla_core.registry import override
from vla_core.testing import register_fakes
spec = importlib.util.spec_from_file_location("toy", {conftest!r})
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from vla_train.cli import main
override("vla.sources", "toy", toy.ToySource)
with register_fakes():
    code = main()
sys.exit(code)
"""
"""``vla-train`` with the parts of these tests."""


@pytest.mark.parametrize("words", [TORCHRUN, ACCELERATE])
def test_the_launcher_is_the_parents_words(words: list[str]) -> None:
    assert launcher(ARGV, {"WORLD_SIZE": "2"}, [*words, *ARGV]) == words
    assert command(ARGV, words) == " ".join(
        [Path(words[1]).name, *words[2:], "--config 'my config.yaml' run_id=x"]
    )
    assert " ".join(words) in script(ARGV, words, "x", False)


def test_without_a_launcher_it_is_the_program() -> None:
    # A shell may have the same words.
    assert launcher(ARGV, {}, [*TORCHRUN, *ARGV]) == []
    assert command(ARGV, []) == "vla-train --config 'my config.yaml' run_id=x"
    assert (
        f"{sys.executable} -m vla_train --config 'my config.yaml' run_id=x run_id=x-again \"$@\""
        in script(ARGV, [], "x", False)
    )


def test_a_parent_that_is_not_known() -> None:
    words = launcher(ARGV, {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, ["slurmstepd"])
    assert words[1:] == ["-m", "torch.distributed.run", "--nproc_per_node", "4", "-m", "vla_train"]
    assert command([], words) == " ".join(words)


def test_what_the_processes_run_on_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert "export DS_ACCELERATOR=cpu\n" in script(ARGV, ACCELERATE, "x", False)


def test_a_resumed_run_is_started_anew_under_the_other_name(toy_config: Path) -> None:
    run = toy_config.parent / "runs" / "toy"
    words = ["--config", str(toy_config), "trackers=[jsonl]", "trainer.save_every=2"]
    assert main([*words, "trainer.max_steps=2"]) == 0
    assert "trainer.resume=false" not in (run / "rerun.sh").read_text()
    assert main([*words, "trainer.max_steps=4", "trainer.resume=true"]) == 0
    assert main([*words, "trainer.max_steps=6", "trainer.resume=auto"]) == 0
    assert "trainer.resume=false" not in (run / "rerun.sh").read_text()  # the other one looks for a state too
    assert main([*words, "trainer.max_steps=6", "trainer.resume=true"]) == 0
    assert " run_id=toy-again trainer.resume=false " in (run / "rerun.sh").read_text()
    stretches = json.loads((run / "run.json").read_text())["stretches"]
    assert [s["after_step"] for s in stretches] == [0, 2, 4, 6]
    assert {(s["engine"], s["processes"]) for s in stretches} == {("one process", 1)}
    page = (run / "report.html").read_text()
    assert "went on after steps 2, 4, 6" in page
    assert "for 6 steps" in page


def test_the_time_of_a_resumed_run_is_that_of_its_stretches() -> None:
    assert Metrics({"loss": {1: 2.0}}).seconds is None
    assert Metrics({"elapsed_s": {1: 2.0, 2: 3.0, 3: 1.0, 4: 1.5, 5: 0.5}}).seconds == 3.0 + 1.5 + 0.5


def test_a_run_that_did_not_end_says_of_how_many_steps(toy_config: Path) -> None:
    assert main(["--config", str(toy_config), "trackers=[jsonl]", "trainer.max_steps=2"]) == 0
    run = toy_config.parent / "runs" / "toy"
    for name, change in (
        ("config.yaml", ("max_steps: 2", "max_steps: 5000")),
        ("run.json", ('"finished": "', '"_": "')),
    ):
        (run / name).write_text((run / name).read_text().replace(*change))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "not finished" in page
    assert "for 2 of 5,000 steps" in page


@pytest.mark.slow
def test_two_processes_are_two_again(toy_config: Path) -> None:
    """By torchrun itself: its command line is what is looked at."""
    program = toy_config.parent / "program.py"
    conftest = Path(__file__).with_name("conftest.py")
    program.write_text(PROGRAM.format(conftest=str(conftest)))
    words = [str(program), "--config", str(toy_config), "trainer.max_steps=2", "trainer.device=cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words]
    subprocess.run(start, env=env, check=True, capture_output=True, timeout=200)
    runs = toy_config.parent / "runs"
    subprocess.run([str(runs / "toy" / "rerun.sh")], env=env, check=True, capture_output=True, timeout=200)
    first, again = (json.loads((runs / name / "run.json").read_text()) for name in ("toy", "toy-again"))
    assert first["processes"] == again["processes"] == 2
    assert "on 2 processes (DDP), cpu" in (runs / "toy" / "report.html").read_text()
    a, b = ((runs / name / "metrics.jsonl").read_text().splitlines() for name in ("toy", "toy-again"))
    assert [json.loads(line).get("loss") for line in a] == [json.loads(line).get("loss") for line in b]
