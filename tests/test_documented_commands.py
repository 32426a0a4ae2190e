"""Every command line in a page or docstring is one that its program takes.

The real programs read it, up to where they would begin to work: an unknown option or key, a range that is
left, or a config file that this repository lacks fails here. For shell scripts see test_example_scripts.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vla_data.cache_cli
import vla_data.calvin_cli
import vla_data.cli
import vla_data.convert_cli
import vla_data.groot_cli
import vla_data.stats_cli
import vla_data.view_cli
import vla_serve.bridge_cli
import vla_serve.doctor_cli
import vla_serve.probe_cli
import vla_serve.robot_cli
import vla_serve.rollout_cli
import vla_serve.rollouts.replay
import vla_serve.server_cli
import vla_train.ablate.run
import vla_train.batch_cli
import vla_train.cli
import vla_train.fit_fast
import vla_train.importers.lerobot.cli
import vla_train.importers.starvla.cli
import vla_train.pictures.cli
import vla_train.runs
from vla_core import registry
from vla_core.config import build_config
from vla_train.ablate.plan import resolve

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/*.md", "packages/*/README.md", "benchmarks/**/*.md", "examples/**/*.md")
SOURCES = (
    "packages/*/src/**/*.py",
    "examples/**/*.py",
    "benchmarks/**/*.py",
    "tools/*.py",
    "configs/**/*.yaml",
)
COMMAND = re.compile(
    r"^[\s#$]*(?:[A-Z_]+=\S+ )*(?:uv run (?:--\S+ )*)?(vla-(?:train|serve|rollout|robot|data) +\S.*)$",
    re.MULTILINE,
)
INLINE = re.compile(r"`(?:uv run )?(vla-(?:train|serve|rollout|robot|data) [^`…]*)`")
LAUNCHED = re.compile(
    r"^[\s#$]*(?:uv run )?(?:accelerate launch|torchrun) .*?-m vla_train (.*)$", re.MULTILINE
)
NEEDED = re.compile(r" --(config|config_yaml|ckpt_path|address|base|task) ")
STAND_IN = """\
framework: {name: QwenPI, vlm: {base_vlm: tiny}}
datasets: {train: [{name: lerobot, path: examples/data/metaworld_faucet}]}
"""


def lines_of(path: Path) -> list[str]:
    text = re.sub(r"\\{1,2}\n\s*#?\s*", " ", path.read_text())
    inline = INLINE.findall(text.replace("``", "`"))
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    launched = [f"vla-train {words}" for words in LAUNCHED.findall(text)]
    # Within a sentence a command may stand without what it needs.
    inline = [line for line in inline if NEEDED.search(line) and "..." not in line]
    return [line for line in [*COMMAND.findall(text), *launched, *inline] if not re.search(r" {3,}\w", line)]


def documented() -> list[Any]:
    found = {}
    for pattern in (*PAGES, *SOURCES):
        for path in sorted(ROOT.glob(pattern)):
            for line in lines_of(path):
                words = shlex.split(line, comments=True)
                found.setdefault(tuple(words[: words.index(">")] if ">" in words else words), path)
    return [
        pytest.param(list(words), id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
        for words, path in found.items()
    ]


class ReadWhole(BaseException):
    """The program has read its command line and would begin to work."""


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs stop where they would begin, after a look at what they were given."""

    def train(tree: Any, *_: Any) -> None:
        resolve(tree)
        raise ReadWhole

    def roll_out(settings: Any, *_: Any, **__: Any) -> None:
        options = {"task": settings.tasks[0], **settings.env_options}
        build_config(registry.load("vla.envs", settings.env).Config, options, "env")
        raise ReadWhole

    def stop(*_: Any, **__: Any) -> None:
        raise ReadWhole

    monkeypatch.setattr(vla_train.runs, "execute", train)
    monkeypatch.setattr(vla_train.ablate.run, "run_plan", stop)
    monkeypatch.setattr(vla_train.fit_fast, "fit", train)
    for name in ("_inspect", "_describe", "_doctor", "_record"):
        monkeypatch.setattr(vla_data.cli, name, stop)
    for module in (
        vla_data.cache_cli,
        vla_data.calvin_cli,
        vla_data.convert_cli,
        vla_data.groot_cli,
        vla_data.stats_cli,
        vla_data.view_cli,
        vla_train.batch_cli,
        vla_serve.probe_cli,
        vla_serve.doctor_cli,
        vla_serve.bridge_cli,
        vla_train.pictures.cli,
        vla_serve.robot_cli,
    ):
        monkeypatch.setattr(module, "_run", stop)
    monkeypatch.setattr(vla_serve.rollout_cli, "rollout", roll_out)
    recorded = SimpleNamespace(env="metaworld"), {"faucet-open": (0,)}
    monkeypatch.setattr(vla_serve.rollouts.replay, "chosen", lambda *_: recorded)
    monkeypatch.setattr(vla_serve.server_cli, "_serve", stop)


def read(words: list[str]) -> int | None:
    """What the program ends with; None once it has taken the whole line."""
    program, rest = words[0], words[1:]
    imports = {
        "import-starvla": vla_train.importers.starvla.cli,
        "import-lerobot": vla_train.importers.lerobot.cli,
    }
    mains = {
        "vla-train": vla_train.cli.main,
        "vla-data": vla_data.cli.main,
        "vla-serve": vla_serve.server_cli.main,
        "vla-rollout": vla_serve.rollout_cli.main,
        "vla-robot": vla_serve.robot_cli.main,
    }
    try:
        if rest[0] in imports and "--help" not in rest:
            imports[rest[0]].make_parser().parse_args(rest[1:])
            return None
        return mains[program](rest)
    except ReadWhole:
        return None
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("words", documented())
def test_a_documented_command_is_read_whole(
    words: list[str],
    readers: None,
    my_parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for word in words:
        # Files of the reader's own stand for what is not of this repository.
        if (
            word.endswith(".yaml")
            and "=" not in word
            and not (tmp_path / word).exists()
            and "configs" not in word
        ):
            (tmp_path / word).parent.mkdir(exist_ok=True)
            (tmp_path / word).write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    quiet = {"--help", "--list"} & set(words)
    assert read(words) == (0 if quiet else None), capsys.readouterr().err


def test_the_walk_finds_pages_and_docstrings() -> None:
    found = [param.id for param in documented()]
    assert len(found) > 40
    for part in (
        "README.md: vla-serve",
        "docs/ablations.md: vla-train ablate",
        "vla_train/command_line.py: vla-train",
    ):
        assert any(part in line for line in found), part


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("vla-train --config configs/quickstart.yaml trainer.max_step=3", "did you mean 'max_steps'"),
        ("vla-train --config configs/quickstrat.yaml", "no such config file"),
        ("vla-train --config configs/quickstart.yaml framework.head.n_head=3", "did you mean 'n_heads'"),
        ("vla-rollout --address a:1 --env metaworld --task x --out y --env.image_siz 9", "image_size"),
        ("vla-serve --ckpt_pth OUT", "--ckpt_path"),
    ],
)
def test_a_wrong_command_is_found(
    line: str,
    complaint: str,
    readers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert read(shlex.split(line)) == 2
    assert complaint in capsys.readouterr().err
