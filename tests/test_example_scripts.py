"""The shell scripts of examples/ start commands that their programs take, and the pages name each of them.

What a script starts notes its words instead of working; the real programs then read them, as in
test_documented_commands.py.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from vla_core.testing.ports import reserved_port

ROOT = Path(__file__).resolve().parent.parent
_COMMANDS = runpy.run_path(str(Path(__file__).with_name("test_documented_commands.py")))
read, readers = _COMMANDS["read"], _COMMANDS["readers"]

SCRIPTS = sorted(path for path in ROOT.glob("examples/*/**/*.sh") if path.name != "install_libero.sh")
WORDS = {
    "eval.sh": ["adjust_bottle"],
    "start_eval.sh": ["-m", "demo_randomized", "-n", "mine", "adjust_bottle", "click_bell"],
}

PYTHONS = ("sim_python", "LIBERO_Python", "LIBERO_PYTHON", "ROBOTWIN_PYTHON")
PLACES = ("ROBOTWIN_PATH", "CALVIN_ROOT", "DATASET", "CHAINS", "LIBERO_HOME", "SENTENCES")
STANDS_IN = {*PYTHONS, *PLACES, "DATA", "FIRST", "LAST", "LIBERO_ENV"}
# What a script starts writes down its words instead of working; `-c` and small programs are left to Python.
NOTE = """#!/bin/bash
note() {{ for word in "$@"; do printf '%s\\0' "$word"; done >> "$NOTED"; printf '\\0' >> "$NOTED"; }}
{body}
"""
PYTHON = """case "$1" in
  -m) shift 2; note vla-rollout "$@" ;;
  -c) exec "{python}" "$@" ;;
esac"""
# A server listens, where the test wants one, and answers (writes its port) only a little later.
SERVE = """shift; note "$@"
if [[ "$1" == vla-serve && -n "${{LISTENS:-}}" ]]; then
  exec "{python}" -c "if True:
    import pathlib, socket, sys, time
    s = socket.create_server(('127.0.0.1', $LISTENS))
    time.sleep(1)
    pathlib.Path(sys.argv[sys.argv.index('--port_file') + 1]).write_text('$LISTENS')
    pathlib.Path('$NOTED').open('a').write('answers' + 2 * chr(0))
    time.sleep(60)" "$@"
fi"""
PROGRAMS = {
    "uv": SERVE.format(python=sys.executable),
    "vla-rollout": 'note vla-rollout "$@"',
    "vla-data": 'note vla-data "$@"',
    "python": PYTHON.format(python=sys.executable),
}


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """``started(script, *words, **environment)`` is the command lines that a script starts."""
    for name, body in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(NOTE.format(body=body))
        program.chmod(0o755)
    for name in ("one", "two"):
        (tmp_path / "data" / name / f"gr1_unified.{name}_1000").mkdir(parents=True)
        (tmp_path / "data" / f"gr1_unified.{name}_1000").mkdir()
    told = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTED": str(tmp_path / "noted"),
        "LIBERO_ENV": str(tmp_path),
        "DATA": str(tmp_path / "data"),
        "FIRST": "7",
        "LAST": "9",
    }
    told |= dict.fromkeys(PYTHONS, str(tmp_path / "bin" / "python"))
    told |= dict.fromkeys(PLACES, str(tmp_path))

    def run(script: Path, *given: str, **more: str) -> list[list[str]]:
        words = ["bash", str(script), *(given or WORDS.get(script.name, []))]
        environment = {**os.environ, **told, **more}
        subprocess.run(words, env=environment, check=True, capture_output=True, cwd=tmp_path)
        lines = (tmp_path / "noted").read_bytes().decode().split("\0\0")
        return [line.split("\0") for line in lines if line]

    return run


@pytest.fixture
def port() -> Iterator[str]:
    """Of a server that a script starts."""
    with reserved_port() as number:
        yield str(number)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_a_script_starts_a_command_that_is_read_whole(
    script: Path,
    started: Any,
    readers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    lines = started(script)
    assert lines
    for words in lines:
        assert read(words) is None, capsys.readouterr().err


HELPED = sorted(path for path in ROOT.glob("examples/*/**/*.sh") if "--help ]]" in path.read_text())


@pytest.mark.parametrize("script", HELPED, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_help_says_what_a_script_takes_and_starts_nothing(script: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    words = ["bash", str(script), "--help"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    head = script.read_text().split("set -euo")[0].splitlines()[1:]
    assert done.stdout.splitlines() == [re.sub("^# ?", "", line) for line in head]


def test_scripts_that_do_not_hand_help_on_have_it_themselves() -> None:
    """Otherwise it would be one of their words, or none, and the work would begin."""
    handed_on = re.compile(r'(vla-train|vla_train|vla-serve|vla-rollout)"?\}? [^&|;]*"\$@"$', re.MULTILINE)
    for script in sorted(ROOT.glob("examples/*/**/*.sh")):
        text = re.sub(r"\\\n *", "", script.read_text())
        assert script in HELPED or handed_on.search(text), script


@pytest.mark.parametrize(
    ("script", "variable"),
    [
        ("Behavior/start_client.sh", "sim_python"),
        ("LIBERO-plus/eval_files/eval_libero.sh", "LIBERO_Python"),
        ("LIBERO/eval_files/eval_libero.sh", "LIBERO_ENV"),
        ("LIBERO/eval_files/eval_libero.sh", "LIBERO_PYTHON"),
        ("LIBERO/train_files/record_libero.sh", "LIBERO_ENV"),
        ("Robocasa_tabletop/eval_files/batch_eval_args.sh", "sim_python"),
        ("Robotwin/eval_files/eval.sh", "ROBOTWIN_PYTHON"),
        ("Robotwin/eval_files/start_eval.sh", "ROBOTWIN_PYTHON"),
        ("SimplerEnv/eval_files/start_simpler_env.sh", "sim_python"),
        ("calvin/eval_files/eval_calvin.sh", "sim_python"),
    ],
)
def test_an_environment_that_is_not_there_is_one_line(script: str, variable: str, tmp_path: Path) -> None:
    environment = {**dict.fromkeys(PLACES, str(tmp_path)), "PATH": os.environ["PATH"], variable: "no/where"}
    words = ["bash", str(ROOT / "examples" / script), *WORDS.get(Path(script).name, [])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no/where" in line
    assert "examples/" in line


@pytest.mark.parametrize(
    ("script", "variables", "words", "complaint"),
    [
        ("LIBERO-plus/eval_files/eval_libero.sh", {"SUITE": "libero_spatiel"}, [], "no 'libero_spatiel'"),
        (
            "SimplerEnv/eval_files/start_simpler_env.sh",
            {"TASKS": "widowx_stack_cub"},
            [],
            "did you mean 'widowx_stack_cube'",
        ),
        ("Robotwin/eval_files/start_eval.sh", {}, ["-m"], "-m is unknown, or needs a word behind it"),
        ("MetaWorld/eval_files/eval_metaworld.sh", {"LEVELS": "easy"}, [], "LEVELS is not read here"),
    ],
)
def test_wrong_words_are_one_line(
    script: str, variables: dict[str, str], words: list[str], complaint: str, tmp_path: Path
) -> None:
    pythons = dict.fromkeys(PYTHONS, sys.executable)
    environment = {**dict.fromkeys(PLACES, str(tmp_path)), **pythons, "PATH": os.environ["PATH"], **variables}
    line = ["bash", str(ROOT / "examples" / script), *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode > 0
    (said,) = done.stderr.splitlines()
    assert complaint in said


def test_folders_become_data_sets_and_several_tasks_several_runs(started: Any) -> None:
    words = started(ROOT / "examples/Robocasa_tabletop/train_files/run_robocasa.sh")[0]
    sets = next(word for word in words if word.startswith("datasets.train="))
    assert sets.count("configs/robots/gr1_arms_waist.yaml") == 2


PAGES = sorted(ROOT.glob("examples/*/README.md"))
SCRIPT = re.compile(r"`((?:[A-Za-z_]+=(?:\"[^\"]*\"|\S+)\s+)*)bash\s+(examples/[^\s`]+\.sh)([^`]*)`")


def documented() -> list[Any]:
    """Commands in the pages that start a script: (variables, script, words)."""
    found = []
    for page in PAGES:
        for before, script, after in SCRIPT.findall(page.read_text()):
            variables = dict(word.split("=", 1) for word in shlex.split(before) if "..." not in word)
            found.append(
                pytest.param(variables, script, shlex.split(after), id=f"{page.parent.name}: {script}")
            )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "script", "words"), documented())
def test_a_script_in_a_page_is_there_and_takes_the_words(
    variables: dict[str, str],
    script: str,
    words: list[str],
    started: Any,
    readers: None,
    port: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (ROOT / script).is_file()
    if script.endswith("install_libero.sh"):
        return
    monkeypatch.chdir(ROOT)
    # What the test's own programs stand for.
    own = {name: value for name, value in variables.items() if name not in STANDS_IN}
    serves = {"LISTENS": "10093"} if "-c" in words else {}
    if serves:
        serves["LISTENS"] = port
        words = [*words[:-1], "-p", port, words[-1]]
    lines = started(ROOT / script, *words, **own, **serves)
    assert lines
    for line in lines:
        assert line == ["answers"] or read(line) is None, capsys.readouterr().err


def test_the_pages_name_every_script() -> None:
    named = {param.values[1] for param in documented()}
    assert {str(path.relative_to(ROOT)) for path in SCRIPTS} - named == set()


def test_words_of_starvla_are_understood(
    started: Any, readers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.chdir(ROOT)
    files, checkpoint = ROOT / "examples/Robotwin/eval_files", str(tmp_path / "checkpoints" / "steps_9")
    words = ("place_shoe", "demo_randomized", "mine", "2", "0", checkpoint, port, "localhost")
    (line,) = started(files / "eval.sh", *words)
    assert read(line) is None
    said = dict(pairwise(line))
    assert (said["--address"], said["--task"]) == (f"localhost:{port}", "place_shoe")
    assert (said["--env.task_config"], said["--env.split"]) == ("demo_randomized", "2")
    assert said["--out"] == f"{tmp_path}/checkpoints/output_eval/steps_9/mine_demo_randomized_2/place_shoe"
    tmp_path.joinpath("noted").unlink()

    options = ("-m", "demo_clean", "--name", "mine", "-c", checkpoint, "-s", "1", "-j", "2", "-p", port)
    server, answers, line = started(files / "start_eval.sh", *options, "all", LISTENS=port)
    assert answers == ["answers"], "the rollout begins when the server answers, not when it listens"
    assert server[:5] == ["vla-serve", "--ckpt_path", checkpoint, "--port", port]
    assert read(line) is None
    said = dict(pairwise(line))
    assert line.count("--task") == 50
    assert (said["--workers"], said["--env.split"], said["--env.scenes"]) == ("2", "1", "own")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))  # the server has been ended
    tmp_path.joinpath("noted").unlink()

    script = ROOT / "examples/SimplerEnv/eval_files/start_simpler_env.sh"
    lines = started(script, checkpoint, port, "--encoding", "png", TASKS="widowx_stack_cube")
    said = dict(pairwise(lines[0]))
    assert (said["--address"], said["--encoding"]) == (f"127.0.0.1:{port}", "png")
    assert (said["--episodes"], said["--embodiment"]) == ("24", "widowx")
    assert said["--out"].startswith(f"{tmp_path}/checkpoints/output_eval/steps_9_widowx_visual_matching")


@pytest.mark.parametrize(
    ("script", "variables", "words", "expected"),
    [
        ("LIBERO/eval_files/run_policy_server.sh", {"CKPT": "a/b", "PORT": "7"}, [], ("--ckpt_path", "a/b")),
        ("calvin/eval_files/run_policy_server.sh", {"your_ckpt": "a/b", "port": "7"}, [], ("--port", "7")),
        ("SimplerEnv/eval_files/run_policy_server.sh", {"gpu_id": "1"}, ["a/b"], ("--ckpt_path", "a/b")),
        ("LIBERO/eval_files/eval_libero.sh", {"TASK_SUITE_NAME": "libero_10"}, [], ("--task", "libero_10_9")),
        ("LIBERO/eval_files/eval_libero.sh", {"NUM_TRIALS_PER_TASK": "3"}, [], ("--episodes", "3")),
        ("LIBERO/eval_files/eval_libero.sh", {"HOST": "there", "PORT": "7"}, [], ("--address", "there:7")),
        (
            "LIBERO/eval_files/eval_libero.sh",
            {"CKPT": "a/b"},
            [],
            ("--out", "a/output_eval/b_libero_spatial_none"),
        ),
        ("LIBERO-plus/eval_files/run_policy_server.sh", {"base_port": "7"}, [], ("--port", "7")),
        ("LIBERO-plus/eval_files/eval_libero.sh", {"host": "h", "base_port": "7"}, [], ("--address", "h:7")),
        (
            "LIBERO-plus/eval_files/eval_libero.sh",
            {"your_ckpt": "a/b"},
            [],
            ("--out", "a/output_eval/b_libero_spatial"),
        ),
        ("MetaWorld/eval_files/eval_metaworld.sh", {"EPISODES_PER_TASK": "3"}, [], ("--episodes", "3")),
        ("MetaWorld/eval_files/eval_metaworld.sh", {"HOST": "there"}, [], ("--address", "there:10093")),
        (
            "MetaWorld/eval_files/eval_metaworld.sh",
            {"CKPT": "a/b"},
            [],
            ("--out", "a/output_eval/b_metaworld"),
        ),
        (
            "Behavior/start_client.sh",
            {"WRAPPERS": "RGBLowResWrapper"},
            [],
            ("--env.wrapper", "RGBLowResWrapper"),
        ),
        ("Robocasa_tabletop/eval_files/batch_eval_args.sh", {}, ["a/b", "3", "9", "4"], ("--workers", "3")),
        ("Robocasa_tabletop/eval_files/batch_eval_args.sh", {}, ["a/b"], ("--out", "a/output_eval/b")),
        ("Behavior/start_client.sh", {"TASKS": "all"}, [], ("--task", "make_pizza")),
    ],
)
def test_variables_of_starvla_are_understood(
    script: str,
    variables: dict[str, str],
    words: list[str],
    expected: tuple[str, str],
    started: Any,
    readers: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = started(ROOT / "examples" / script, *words, **variables)
    assert expected in set(pairwise(line))
    assert read(line) is None


def test_a_file_of_tasks_is_read(started: Any, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("place_shoe # one\n\nturn_switch\n")
    script = ROOT / "examples/Robotwin/eval_files/start_eval.sh"
    (line,) = started(script, "-m", "demo_clean", "-n", "mine", str(tmp_path / "some.txt"))
    assert [b for a, b in pairwise(line) if a == "--task"] == ["place_shoe", "turn_switch"]


def test_there_are_the_scripts_that_starvla_users_type() -> None:
    names = {str(path.relative_to(ROOT / "examples")) for path in SCRIPTS}
    assert names >= {
        "SimplerEnv/train_files/run_oxe_train.sh",
        "SimplerEnv/eval_files/start_simpler_env.sh",
        "Robocasa_tabletop/train_files/run_robocasa.sh",
        "Robocasa_tabletop/eval_files/batch_eval_args.sh",
        "Robotwin/train_files/run_robotwin_train.sh",
        "Robotwin/eval_files/eval.sh",
        "Robotwin/eval_files/start_eval.sh",
        "LIBERO-plus/eval_files/eval_libero.sh",
        "Behavior/start_server.sh",
        "Behavior/start_client.sh",
    }
