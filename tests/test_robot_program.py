"""``vla-robot`` as a process: a served policy, a robot that lerobot finds itself, and what was recorded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import tiny_policy
from vla_data.cli import main as examine
from vla_data.lerobot import LeRobotConfig, LeRobotSource
from vla_serve import PolicyServer
from vla_serve.robot_cli import main as drive
from vla_serve.testing import TimedPolicy, ToyPolicy

pytest.importorskip("lerobot")

SIZE = 32
HZ = 20.0
# A process of its own knows only parts found by entry point; the fakes of the tiny policy are not.
SERVE = """
import sys
import torch
torch.set_num_threads(1)
from vla_core.testing import register_fakes
from vla_serve.server_cli import main
with register_fakes():
    sys.exit(main(sys.argv[1:]))
"""
KINDS = ("python", "yaml", "text")
DRIVE = "import sys; from vla_serve.robot_cli import main; sys.exit(main())"
PLUGIN = '''
"""A robot that goes where it is sent, and writes down what it was sent."""
import json, time
from dataclasses import dataclass
import numpy as np
from lerobot.robots import Robot, RobotConfig

@RobotConfig.register_subclass("shelf_arm")
@dataclass(kw_only=True)
class ShelfArmConfig(RobotConfig):
    log: str = ""
    size: int = 32
    broken: bool = False

class ShelfArm(Robot):
    config_class = ShelfArmConfig
    name = "shelf_arm"
    def __init__(self, config):
        super().__init__(config)
        self.config, self.open = config, False
        self.where = {"pan.pos": 0.0, "lift.pos": 0.0, "gripper.pos": 50.0}
    @property
    def action_features(self):
        return {key: float for key in self.where}
    @property
    def observation_features(self):
        return {**self.action_features, "front": (self.config.size, self.config.size, 3)}
    @property
    def is_connected(self):
        return self.open
    @property
    def is_calibrated(self):
        return True
    def connect(self, calibrate=True):
        if self.config.broken:
            raise ConnectionError("no arm at the port")
        self.open = True
    def disconnect(self):
        self.open = False
    def calibrate(self): ...
    def configure(self): ...
    def get_observation(self):
        image = np.full((self.config.size, self.config.size, 3), 40, np.uint8)
        image[:, int(abs(self.where["pan.pos"])) % self.config.size] = 255
        return {**self.where, "front": image}
    def send_action(self, action):
        assert set(action) == set(self.where), action
        self.where = dict(action)
        with open(self.config.log, "a") as file:
            file.write(json.dumps([time.time(), action]) + "\\n")
        return action
'''
REPACK = """\
state: {joints: [pan.pos, lift.pos]}
action: {joints: [pan.pos, lift.pos]}
units: {joints: deg, gripper: "%"}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy for two joints in rad and a gripper from 0 to 1."""
    groups = (GroupSpec("joints", 2, "rad"), GroupSpec("gripper", 1, "1", gripper="open_positive"))
    rows = np.random.default_rng(0).uniform([-0.5, -0.5, 0.0], [0.5, 0.5, 1.0], (200, 3))
    stats = VectorStats.from_rows(rows)
    spec = RobotSpec(
        ObservationSpec((CameraSpec("front", SIZE, SIZE),), groups),
        ActionSpec(groups, 8, HZ),
        NormStats({"state": stats, "action": stats}),
        "shelf",
    )
    policy = tiny_policy(spec)
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "steps_1"
    policy.save(path, step=1, config={"framework": policy.config})
    return path


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an installed plugin, as pip lays it out."""
    site = tmp_path_factory.mktemp("site")
    (site / "lerobot_robot_shelf.py").write_text(PLUGIN)
    info = site / "lerobot_robot_shelf-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_shelf\nVersion: 0.1\n")
    return site


def start(program: str, *words: object, site: Path | None = None, home: Path | None = None) -> Any:
    """A program in a process of its own; what it says goes to one pipe."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    if home is not None:
        environment["HF_LEROBOT_HOME"] = str(home)
    command = [sys.executable, "-c", program, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
    )


def serve(checkpoint: Path, port_file: Path, port: int = 0) -> tuple[Any, int]:
    port_file.unlink(missing_ok=True)
    words = ("--ckpt_path", checkpoint, "--port", port, "--port_file", port_file, "--threads", 1)
    process = start(SERVE, *words)
    deadline = time.monotonic() + 120
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            end(process)
            raise AssertionError("no server")
        time.sleep(0.05)
    return process, int(port_file.read_text())


def end(process: Any) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[int]:
    process, port = serve(checkpoint, checkpoint.parent / "port")
    yield port
    end(process)


def robot(port: int, site: Path, tmp_path: Path, *words: object) -> Any:
    repack = tmp_path / "repack.yaml"
    repack.write_text(REPACK)
    own = ("--robot.type=shelf_arm", f"--robot.log={tmp_path / 'log'}", "--robot.size", SIZE)
    words = ("--address", f"127.0.0.1:{port}", "--instruction", "tidy up", "--repack", repack, *own, *words)
    return start(DRIVE, *words, site=site, home=tmp_path / "home")


def sent(tmp_path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """When and what the robot was sent: seconds ``[N]``, and pan, lift (deg) and gripper (%) ``[N, 3]``."""
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    return np.array([t for t, _ in lines]), np.array([list(a.values()) for _, a in lines])


def until(process: Any, pattern: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if re.search(pattern, line):
            return lines
    raise AssertionError("\n".join(lines))


@pytest.mark.slow
def test_a_robot_is_driven_and_what_it_did_can_be_trained_on(
    server: int, plugins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    words = ["--record", data, "--episodes", 2, "--episode_s", 2, "--reset_s", 0.2]
    words += ["--max_step", "joints=0.02,gripper=0.1"]
    process = robot(server, plugins, tmp_path, *words)
    said = process.communicate(timeout=150)[0]
    assert process.returncode == 0, said
    assert "  action  joints = robot's pan.pos, lift.pos, in deg" in said
    assert re.search(r"joints: sends targets in rad; .*kept in \[-0.\d+.*steps of at most 0.02 rad", said), (
        said
    )
    times, commands = sent(tmp_path)
    assert len(times) > 20
    joints = np.deg2rad(commands[:, :2])
    assert np.abs(joints).max() <= 0.5
    assert (commands[:, 2] >= 0).all()
    assert (commands[:, 2] <= 100).all()
    assert np.abs(np.diff(joints, axis=0, prepend=np.zeros((1, 2)))).max() <= 0.02 + 1e-6
    assert np.abs(np.diff(commands[:, 2], prepend=50.0)).max() <= 10 + 1e-4
    assert examine(["doctor", str(data)]) == 0
    assert "0 errors" in capsys.readouterr().out
    source = LeRobotSource(LeRobotConfig(str(data)), 4)
    assert len(source.lengths()) == 2
    groups = [replace(g) for g in source.spec.action.groups]
    assert [(g.name, g.unit, g.representation) for g in groups] == [
        ("joints", "rad", "absolute"),
        ("gripper", "1", "absolute"),
    ]
    assert source.spec.action.control_hz == HZ
    sample = source[0]
    assert sample.observation.instruction == "tidy up"
    assert sample.observation.images["front"].shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(sample.observation.state, [0, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(np.rad2deg(sample.actions[0, :2]), commands[0, :2], atol=1e-3)
    np.testing.assert_allclose(source[1].observation.state, sample.actions[0], atol=1e-6)


@pytest.mark.slow
def test_a_server_that_is_killed_holds_the_robot_and_its_successor_moves_it_again(
    checkpoint: Path, plugins: Path, tmp_path: Path
) -> None:
    first, port = serve(checkpoint, tmp_path / "port")
    process = robot(port, plugins, tmp_path, "--max_step", "0.05", "--watchdog_s", 0.5, "--timeout_s", 2)
    second = None
    try:
        until(process, "stops the robot")
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() or len(sent(tmp_path)[0]) < 15:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        until(process, "holding position")
        before = len(sent(tmp_path)[0]) + 15
        deadline = time.monotonic() + 60
        while len(sent(tmp_path)[0]) < before:
            assert time.monotonic() < deadline, "held, by a command at every step"
            time.sleep(0.1)
        second, _ = serve(checkpoint, tmp_path / "port", port)
        until(process, "the server answers again")
        commands = sent(tmp_path)[1]
        still = commands[before - 10 : before]
        assert np.allclose(still, still[-1])
        deadline = time.monotonic() + 30
        while np.allclose(sent(tmp_path)[1][-1], still[-1]):
            assert time.monotonic() < deadline, "it moves again"
            time.sleep(0.1)
        process.stdin.write("q")
        process.stdin.flush()
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 0, said
        assert re.search(r"episode 1: \d+ steps in .* held for \d+, 1 outages", said), said
        commands = sent(tmp_path)[1]
        assert np.allclose(commands[-1], commands[-2]), "the last command is a hold"
    finally:
        for running in (process, first, second):
            if running is not None and running.poll() is None:
                end(running)


@pytest.mark.slow
def test_a_dry_run_and_a_signal(server: int, plugins: Path, tmp_path: Path) -> None:
    process = robot(server, plugins, tmp_path, "--dry_run")
    until(process, r"would send: pan\.pos -?[\d.e-]+, lift\.pos .*, gripper\.pos")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_the_published_dummy_robot(server: int, tmp_path: Path) -> None:
    """``lerobot-robot-dummy``: found by lerobot, and refused by name, for it has no camera."""
    pytest.importorskip("lerobot_robot_dummy")
    repack = tmp_path / "repack.yaml"
    repack.write_text(REPACK)
    words = ["--address", f"127.0.0.1:{server}", "--instruction", "tidy up", "--repack", repack]
    words += ["--robot.type", "dummy_follower", "--robot.motor_names", "[pan,lift,gripper]"]
    process = start(DRIVE, *words, home=tmp_path / "home")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2, said
    assert "observation.cameras[front]: the robot has no camera 'front' (it has none)" in said


@pytest.mark.slow
def test_the_published_dummy_robot_is_driven(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It has no camera, so the policy of this test wants none; it prints what it is sent."""
    pytest.importorskip("lerobot_robot_dummy")
    joints = (GroupSpec("joints", 2, "rad"),)
    spec = RobotSpec(ObservationSpec((), joints), ActionSpec(joints, 8, HZ), embodiment="dummy")
    repack = tmp_path / "repack.yaml"
    repack.write_text("state: {joints: [pan.pos, lift.pos]}\naction: {joints: [pan.pos, lift.pos]}\n")
    with PolicyServer(TimedPolicy(spec)) as here:
        words = ["--address", here.address, "--instruction", "tidy up", "--repack", str(repack)]
        words += ["--robot.type", "dummy_follower", "--robot.motor_names", "[pan,lift]"]
        words += ["--robot.calibration_dir", str(tmp_path), "--max_step", "0.05", "--episode_s", "1"]
        assert drive([*words, "--temporal_ensemble_coeff", "0.01"]) == 0
    said = capfd.readouterr().out
    targets = np.array([float(x) for x in re.findall(r"  pan\.pos: (-?[\d.]+)", said)])
    assert len(targets) > 5, said
    assert targets[-1] > 0.2, "the policy's targets lie ahead"
    assert np.abs(np.diff(targets, prepend=0.0)).max() <= 0.05 + 1e-6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--robot.broken", "true"), 1, "vla-robot: no arm at the port"),
        pytest.param(
            ("--robot.speed", "3"), 2, "vla-robot: --robot: .*--robot.speed", marks=pytest.mark.slow
        ),
        pytest.param(
            ("--robot.type", "shelf_arms"),
            2,
            r"lerobot knows no 'shelf_arms' \(did you mean 'shelf_arm'\?\)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_one_line(
    server: int, plugins: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    process = robot(server, plugins, tmp_path, *words)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == code, said
    assert re.search(message, said.splitlines()[-1]), said
    assert "Traceback" not in said


def test_the_robot_of_the_documentation_fits_the_toy_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "robots.md").read_text()
    of_its_own = page[page.index("## A robot of your own") :]
    python, repack, shown = (re.findall(rf"```{kind}\n(.*?)```", of_its_own, re.S)[0] for kind in KINDS)
    (tmp_path / "slider_lab.py").write_text(python)
    (tmp_path / "slider.yaml").write_text(repack)
    monkeypatch.syspath_prepend(str(tmp_path))
    robot = ["--robot.type", "slider_lab:Slider", "--robot.port", "/dev/ttyUSB1"]
    run = ["--repack", str(tmp_path / "slider.yaml"), "--max_step", "0.2", "--episode_s", "0.5"]
    with PolicyServer(ToyPolicy()) as server:
        words = ["--address", server.address, "--instruction", "go left", *robot, *run]
        assert drive([*words, "--episodes", "2", "--reset_s", "0"]) == 0
    said = capsys.readouterr().out
    assert shown in said
    counts = re.findall(r"(\d+) steps in .*velocity slowed (\d+)x", said)
    assert len(counts) == 2
    assert all(int(slowed) <= int(steps) for steps, slowed in counts), "each episode's own"
