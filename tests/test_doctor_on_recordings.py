"""``vla-serve doctor`` on demonstrations as they lie on disk: their source is found by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from vla_core.types import ActionChunk
from vla_data import LeRobotSource
from vla_data.cli import main as describe
from vla_serve import PolicyServer
from vla_serve.server_cli import main

DATA = Path(__file__).resolve().parent.parent / "examples" / "data" / "metaworld_faucet"
HORIZON = 4


class Remembering:
    """Answers what was recorded with the picture, whichever instruction comes with it."""

    framework = "Remembering"

    def __init__(self, frames):
        source = LeRobotSource(LeRobotSource.Config(str(DATA)), HORIZON)
        self.specs = {"default": source.spec}
        self.known = {}
        for index in np.unique(np.linspace(0, len(source) - 1, frames).round().astype(int)):
            sample = source[int(index)]
            self.known[self.key(sample.observation)] = sample.actions

    def act(self, observations, seeds, steps=None):
        spec = self.specs["default"].action
        nothing = np.zeros((spec.horizon, spec.dim), np.float32)
        return [ActionChunk(self.known.get(self.key(o), nothing), spec) for o in observations]

    @staticmethod
    def key(observation):
        return b"".join(np.asarray(image).tobytes() for image in observation.images.values())


class Blind(Remembering):
    """Answers what was recorded at the state, with its eyes closed."""

    @staticmethod
    def key(observation):
        return np.asarray(observation.state, np.float32).tobytes()


def test_a_policy_that_follows_without_looking_is_found_out(capsys):
    with PolicyServer(Blind(6)) as server:
        assert main(["doctor", "--address", server.address, "--data", str(DATA), "--frames", "6"]) == 0
    said = capsys.readouterr().out
    assert "The answers follow the recording: nothing to explain" in said
    assert "The images hardly matter: no change of them moved the answers by more than 0.0%" in said


def test_a_policy_that_remembers_follows_the_recording(capsys, tmp_path):
    with PolicyServer(Remembering(6)) as server:
        words = ["doctor", "--address", server.address, "--data", str(DATA)]
        assert main([*words, "--frames", "6"]) == 0
        said = capsys.readouterr().out
        assert "6 frames of" in said
        assert "The answers follow the recording: nothing to explain" in said
        assert "hardly" not in said
        assert "differs:" not in said
        # A robot file that takes the effort for metres: said before anything is compared.
        robot = tmp_path / "robot.yaml"
        assert describe(["describe", str(DATA), "--out", str(robot)]) == 0
        robot.write_text(robot.read_text().replace("unit: '1'", "unit: m"))
        capsys.readouterr()
        assert main([*words, "--frames", "6", "--robot", str(robot)]) == 0
        said = capsys.readouterr().out
        assert "differs: action gripper_effort: unit is m in the data, 1 in the contract" in said
