"""README.md is true: its Python runs, its commands run or are valid, what it names exists.

Commands, config and code are taken from the text itself, so that it and this test cannot drift apart.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomllib
import yaml
from vla_core import registry
from vla_core.config import build_config
from vla_core.testing.ports import reserved_port
from vla_serve import PolicyClient, PolicyServer
from vla_serve.testing import ToyPolicy
from vla_train.cli import main
from vla_train.command_line import make_parser, overrides_of, split_configs
from vla_train.composition import compose
from vla_train.config import RunConfig
from vla_train.presets import list_presets, load_run_tree
from vla_train.spellings import load_run

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
ADDRESS = "127.0.0.1:10093"
# What makes the tour short: the rest of each command is run as it stands.
SHORT = {
    "--episodes 40": "--episodes 2",
    "--workers 2": "--workers 1",
    "trainer.max_steps=300": "trainer.max_steps=2 trainer.batch_size=2 trainer.val_samples=2",
    "steps_300": "steps_2",
    "--episodes 10": "--episodes 1 --workers 1 --env.max_steps 8",
}


def blocks(language: str, text: str = TEXT) -> list[str]:
    return [block for name, block in FENCES if name == language and block in text]


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def commands(text: str = TEXT) -> list[str]:
    """The shell commands, one a line, without comments."""
    lines = [line for block in blocks("sh", text) for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r" +# .*", "", line) for line in lines]


@pytest.fixture
def my_yaml(tmp_path: Path) -> Path:
    (block,) = blocks("yaml")
    assert len(block.splitlines()) == 10
    path = tmp_path / "my.yaml"
    path.write_text(block)
    return path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number: int) -> None:
    code = blocks("python")[number]
    assert len(code.splitlines()) <= 15
    with PolicyServer(ToyPolicy()) as server:
        names: dict[str, object] = {}
        exec(compile(code.replace(ADDRESS, server.address), "README.md", "exec"), names)
    for name, shape in re.findall(r"([\w.]+)(?:\.shape| = head).*# (\[[\d, ]+\])", code):
        assert str(list(eval(name, names).shape)) == shape


def test_the_client_has_a_server_that_fits_it() -> None:
    """The command beside the example, and the example, as two processes."""
    (command,) = (
        line for line in commands(section("From a simulator of your own")) if "PolicyServer" in line
    )
    (code,) = (block for block in blocks("python") if ADDRESS in block)
    with reserved_port() as port:
        words = shlex.split(command.removeprefix("uv run python ").replace("10093", str(port)))
        server = subprocess.Popen([sys.executable, *words])
        try:
            client = PolicyClient(f"127.0.0.1:{port}")
            client.wait_ready(60)
            client.close()
            exec(compile(code.replace(ADDRESS, f"127.0.0.1:{port}"), "README.md", "exec"), {})
        finally:
            server.terminate()
            server.wait(30)


def test_the_quickstart_is_a_valid_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed, not trained: CI runs it at reduced steps."""
    monkeypatch.chdir(ROOT)
    install, program = commands(section("Two commands"))[0].split(" && ")
    assert install == "pip install uv"
    config = program.removeprefix("uv run vla-train --config ")
    composed = compose(load_run_tree([Path(config)], ["datasets.train.0.cache=none"]))
    assert composed.policy.framework == "QwenPI"
    assert composed.config.trainer.evaluation.episodes == 20


def test_training_commands_are_valid(my_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = [line.partition("vla-train ")[2] for line in commands() if "vla-train --config" in line]
    assert len(lines) == 5
    for line in lines:
        known, words = split_configs(shlex.split(line))
        files = [my_yaml if word == my_yaml.name else Path(word) for word in known if word[0] != "-"]
        tree = load_run(files, overrides_of(words))
        build_config(RunConfig, tree.data, "", tree)


def test_the_config_composes(my_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = compose(load_run_tree([my_yaml])).config
    assert config.trainer.learning_rates() == {"base": 1e-4, "vlm": 1e-5}


def test_the_mistake_is_reported_as_shown(my_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(my_yaml), "trainer.max_step=200"]) == 2
    assert capsys.readouterr().err in blocks("text", section("Config"))


def test_options_exist() -> None:
    from vla_serve.rollouts.options import make_parser as rollout
    from vla_serve.server_cli import _parser as server

    known = {o for p in (make_parser(), server(), rollout()) for a in p._actions for o in a.option_strings}
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"(--[a-z_]+)", prose.replace("<!--", "").replace("-->", ""))
    assert named
    assert set(named) <= known | {"--env"}


def test_frameworks_and_parts_exist() -> None:
    (shown,) = blocks("text", section("What there is today"))
    frameworks, *groups = re.split(r"^(?=vla\.)", shown, flags=re.MULTILINE)
    presets = list_presets()
    for line in frameworks.splitlines()[1:]:
        name, description = line.split(maxsplit=1)
        assert presets[name] == description
    for line in groups:
        group, names = line.strip().split(": ")
        assert set(names.split(", ")) <= set(registry.names(group)), group


def test_the_tree_is_that_of_the_repository() -> None:
    (tree,) = blocks("text", section("Where things are"))
    shown = [line.split()[0].rstrip("/") for line in tree.splitlines()]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in listed.stdout.splitlines() if line[0] != "."} | {"README.md"}
    packages = {path.name for path in (ROOT / "packages").iterdir() if path.is_dir()}
    assert sorted(shown) == sorted((top | packages) - {"README.md"})


def test_a_package_installs_with_its_sources_in_the_workspace() -> None:
    """Each command names the package whose example follows, and every sibling it needs."""
    lines = [line for line in commands() if line.startswith("pip install ./")]
    assert len(lines) == 3
    for line in lines:
        *needed, package = [ROOT / word for word in line.split()[2:]]
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        siblings = {name for name in re.findall(r"vla-\w+", " ".join(project["dependencies"]))}
        assert siblings == {path.name for path in needed if path.exists()}


def test_development_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(section("Development")):
        program, name = command.split()
        if program == "make":
            assert f"\n{name}: ## " in makefile
        else:
            assert (program, name) == ("bash", ".ci/run")
            assert (ROOT / name).exists()


def test_pictures_are_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", TEXT)
    assert len(pictures) == 2
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in pictures)


@pytest.fixture
def tour(tmp_path: Path) -> list[list[str]]:
    """The tour's commands, shortened, with their files below ``tmp_path``."""
    lines = commands(section("Record, train, serve"))
    for old, new in {**SHORT, "runs/": f"{tmp_path}/"}.items():
        assert any(old in line for line in lines), f"the tour has no '{old}'"
        lines = [line.replace(old, new) for line in lines]
    argvs = [shlex.split(line.removeprefix("uv run ")) for line in lines]
    assert [argv[0] for argv in argvs] == ["vla-data", "vla-train", "vla-serve", "vla-rollout"]
    argvs[1].append(f"run_root_dir={tmp_path}")
    argvs[2][argvs[2].index("10093")] = "0"
    argvs[2] += ["--port_file", str(tmp_path / "port")]
    return [[str(Path(sys.executable).with_name(argv[0])), *argv[1:]] for argv in argvs]


@pytest.mark.slow
def test_the_tour(tour: list[list[str]], tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(argv: list[str]) -> str:
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    record, train, serve, rollout = tour
    assert "2 episodes kept" in run(record)
    assert "steps_2" in run(train)
    with subprocess.Popen(serve, cwd=ROOT, env=env) as server:
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "port").exists():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            address = f"127.0.0.1:{(tmp_path / 'port').read_text().strip()}"
            out = run([word.replace(ADDRESS, address) for word in rollout])
        finally:
            server.terminate()
    (table,) = blocks("text", section("Record, train, serve"))
    assert table.split()[:12] == out[out.index("task ") :].split()[:12]
    results = yaml.safe_load((tmp_path / "drawer" / "rollout" / "results.json").read_text())
    assert results["episodes"][0]["steps"] == 8
