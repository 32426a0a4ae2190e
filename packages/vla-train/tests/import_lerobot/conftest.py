"""Policies of lerobot on disk, from the goldens (see golden/README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from vla_core.types import Observation, Sample
from vla_train.cli import main
from vla_vlm.paligemma.shapes import shipped_tokenizer

GOLDEN = Path(__file__).parent / "golden"
TASKS = ("pick up the red block", "open_the drawer", "close it")
MISSING = {(1, "wrist"), (2, "front")}
ROBOT = {
    "embodiment": "tiny",
    "control_hz": 10,
    "action": [{"name": "move", "dim": 3, "unit": "m", "representation": "absolute"}],
    "state": [{"name": "place", "dim": 2, "unit": "m", "representation": "absolute"}],
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Published:
    """A directory as lerobot wrote it, and what the command needs beside it."""

    directory: Path
    base_vlm: Path
    robot: Path
    expected: dict[str, torch.Tensor]

    def words(self, out: Path) -> list[str]:
        """Arguments of ``vla-train import-lerobot``."""
        named = {"--robot": self.robot, "--base_vlm": self.base_vlm}
        return [str(self.directory), str(out), *(str(w) for pair in named.items() for w in pair)]

    def edit(self, name: str, **changes: Any) -> None:
        """Change keys of a JSON file in the directory; None removes one."""
        file = self.directory / name
        data = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    def step(self, name: str, registry_name: str, **changes: Any) -> None:
        """Change the config of one step of a processor."""
        steps = json.loads((self.directory / name).read_text())["steps"]
        (one,) = [step for step in steps if step["registry_name"] == registry_name]
        one["config"].update(changes)
        self.edit(name, steps=steps)

    def weights(self) -> dict[str, torch.Tensor]:
        """The state dict in the directory."""
        return load_file(self.directory / "model.safetensors")

    def save(self, state: dict[str, torch.Tensor]) -> None:
        """Put another state dict into the directory."""
        save_file({k: v.clone() for k, v in state.items()}, self.directory / "model.safetensors")

    def write_robot(self, **changes: Any) -> None:
        """Change keys of the robot file."""
        self.robot.write_text(yaml.safe_dump({**ROBOT, **changes}))

    def samples(self) -> list[Sample]:
        """The rows of the goldens; two lack a camera."""
        out, e = [], self.expected
        for b, task in enumerate(TASKS):
            images = {n: e[n][b].numpy() for n in ("front", "wrist") if (b, n) not in MISSING}
            observation = Observation(images, task, state=e["state"][b].numpy(), embodiment="tiny")
            out.append(Sample(observation, e["actions"][b].numpy(), np.ones((4, 3), np.bool_)))
        return out


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Published]:
    """``published(variant)``: a copy of a golden directory that a test may change."""

    def make(variant: str) -> Published:
        directory = tmp_path / variant
        shutil.copytree(GOLDEN / variant, directory)
        expected = load_file(directory / "expected.safetensors")
        (directory / "expected.safetensors").unlink()
        base = tmp_path / "base"
        base.mkdir(exist_ok=True)
        shipped_tokenizer().save(str(base / "tokenizer.json"))
        (base / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        shutil.copy(GOLDEN / "paligemma.json", base / "config.json")
        made = Published(directory, base, tmp_path / "robot.yaml", expected)
        made.write_robot()
        return made

    return make


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command and returns its one line of complaint."""

    def run(*words: Any) -> str:
        assert main(["import-lerobot", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "Traceback" not in line
        return line

    return run
