"""examples/<benchmark>: data set, simulator client and training config fit, through to actions over gRPC."""

from __future__ import annotations

import io
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from vla_core.envs import (
    _libero_robot,
    _simpler_robots,
    behavior,
    calvin,
    gr1_tabletop,
    libero_plus,
    robotwin,
)
from vla_core.policy import VLAPolicy
from vla_core.specs import ActionSpec, GroupSpec
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.robot.config import RobotConfig, load_robot
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_train.cli import main

ROOT = Path(__file__).resolve().parents[1]
ROBOTS = ROOT / "configs" / "robots"
EPISODES, FRAMES = 3, 4
Groups = tuple[GroupSpec, ...]

# Robot file -> pictures (H, W), state and action as the simulator's client has them.
CLIENTS: dict[str, tuple[dict[str, tuple[int, int]], Groups, ActionSpec | tuple[Groups, float]]] = {
    "bridge": ({"front": (256, 256)}, _simpler_robots.WIDOWX.state, _simpler_robots.WIDOWX.action_spec),
    "fractal": (
        {"head": (256, 320)},
        _simpler_robots.GOOGLE_ROBOT.state,
        _simpler_robots.GOOGLE_ROBOT.action_spec,
    ),
    "gr1_arms_waist": ({"ego": (256, 256)}, gr1_tabletop._STATE, (gr1_tabletop._STATE, 20.0)),
    "robotwin": (dict.fromkeys(robotwin.CAMERAS, (240, 320)), robotwin._JOINTS, (robotwin._JOINTS, 25.0)),
    "behavior_r1pro": (
        {"head": (720, 720), "left_wrist": (480, 480), "right_wrist": (480, 480)},
        tuple(behavior._STATE),
        (behavior._ACTION, 30.0),
    ),
    "libero": (dict.fromkeys(libero_plus._CAMERAS, (256, 256)), _libero_robot.STATE, _libero_robot.ACTION),
    "libero_oxe": (
        dict.fromkeys(libero_plus._CAMERAS, (256, 256)),
        _libero_robot.STATE,
        _libero_robot.action_spec("open_positive"),
    ),
    "calvin": ({"static": (200, 200), "gripper": (84, 84)}, calvin.STATE, (calvin.ACTION, 30.0)),
}
CONFIGS = {
    "SimplerEnv": ("bridge", "fractal"),
    "Robocasa_tabletop": ("gr1_arms_waist",),
    "Robotwin": ("robotwin",),
    "calvin": ("calvin",),
    "LIBERO-plus": ("libero",),
    "Behavior": ("behavior_r1pro",),
}


def write(root: Path, robot: RobotConfig, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """A LeRobot v2.1 data set of a few random frames, laid out as the robot file says."""
    rng = np.random.default_rng(0)
    width: dict[str, int] = {}
    for group in (*robot.state, *robot.action):
        assert group.key is not None
        assert group.end is not None
        width[group.key] = max(width.get(group.key, 0), group.end)
    features: dict[str, Any] = {
        k: {"dtype": "float32", "shape": [n], "names": None} for k, n in width.items()
    }
    cells = {}
    for name, key in robot.cameras.items():
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*sizes[name], 3), np.uint8)).save(
            picture, "png", compress_level=0
        )
        cells[key] = {"bytes": picture.getvalue(), "path": "0.png"}
        features[key] = {"dtype": "image", "shape": [*sizes[name], 3], "names": None}
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    for episode in range(EPISODES):
        values = {key: rng.uniform(-0.1, 0.1, (FRAMES, n)).astype(np.float32) for key, n in width.items()}
        columns: dict[str, Any] = {key: pa.array(list(rows)) for key, rows in values.items()}
        columns |= {key: pa.array([cell] * FRAMES) for key, cell in cells.items()}
        table = pa.table({**columns, "task_index": [0] * FRAMES})
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
    info = {"codebase_version": "v2.1", "fps": robot.control_hz or 10, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "go"}\n')
    episodes = [json.dumps({"episode_index": i, "length": FRAMES}) for i in range(EPISODES)]
    (root / "meta/episodes.jsonl").write_text("\n".join(episodes) + "\n")
    return root


@pytest.mark.parametrize("name", CLIENTS)
def test_client_and_data_set_make_one_contract(name: str, tmp_path: Path) -> None:
    """Otherwise a policy of these data is refused by the simulator's client at the handshake."""
    sizes, state, action = CLIENTS[name]
    file = ROBOTS / f"{name}.yaml"
    root = write(tmp_path / "data", load_robot(file), sizes)
    spec = LeRobotSource(LeRobotConfig(str(root), robot=str(file)), 1).spec
    assert {c.name: (c.height, c.width) for c in spec.observation.cameras} == sizes
    assert [c.name for c in spec.observation.cameras] == list(sizes)
    assert spec.observation.state == state
    groups, hz = (action.groups, action.control_hz) if isinstance(action, ActionSpec) else action
    assert spec.action.groups == groups
    assert spec.action.control_hz == hz


def words(benchmark: str, tmp_path: Path, *more: str) -> list[str]:
    """A ``vla-train`` command line with the benchmark's config on small data and a tiny backbone."""
    line = ["--config", f"examples/{benchmark}/train_files/train.yaml", "framework.vlm.base_vlm=tiny"]
    for i, name in enumerate(CONFIGS[benchmark]):
        root = write(tmp_path / name, load_robot(ROBOTS / f"{name}.yaml"), CLIENTS[name][0])
        line.append(f"datasets.train.{i}.path={root}")
    return [*line, f"run_root_dir={tmp_path / 'runs'}", "trainer.precision=fp32", "trainer.device=cpu", *more]


def test_every_benchmark_has_a_config_over_a_preset_and_a_robot_file() -> None:
    for benchmark, robots in CONFIGS.items():
        config = yaml.safe_load((ROOT / "examples" / benchmark / "train_files/train.yaml").read_text())
        assert config["framework"]["name"] in ("QwenGR00T", "QwenOFT")
        used = [Path(node["robot"]).stem for node in config["datasets"]["train"]]
        assert used == list(robots)


@pytest.mark.parametrize("benchmark", CONFIGS)
def test_a_dry_run_finds_everything_in_order(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    # The regression head is small; the config's own is resolved where its script is read.
    small = ("framework.name=QwenOFT", "trainer.batch_size=1", "trainer.threads=1")
    assert main([*words(benchmark, tmp_path, *small), "--dry_run"]) == 0
    assert "everything is in order" in capsys.readouterr().out


SIMULATOR = """
from types import SimpleNamespace
import numpy as np

class Scene:
    # What simpler-env/SimplerEnv answers at commit 4ab7178; see packages/vla-core/tests/test_simpler_env.py.
    def __init__(self, task, limit):
        self.google, self.limit, self.unwrapped, self.n = task.startswith("google"), limit, self, 0
        self.agent = SimpleNamespace(get_gripper_closedness=lambda: 0.0)
        self.tcp = SimpleNamespace(pose=SimpleNamespace(p=np.array([0.4, 0.1, 1.0]), q=np.array([1.0, 0, 0,
        0])))

    def get_language_instruction(self):
        return "put carrot on plate"

    def see(self):
        name, size = ("overhead_camera", (512, 640, 3)) if self.google else ("3rd_view_camera", (480, 640, 3))
        image = np.random.default_rng(self.n).integers(0, 255, size, np.uint8)
        base = np.array([0.147, 0.028, 0.87, 0, 0, 0, 1.0])
        return {"image": {name: {"rgb": image}}, "agent": {"base_pose": base}, "extra": {}}

    def reset(self, options):
        self.n, self.episode = 0, options["obj_init_options"]["episode_id"]
        return self.see(), {}

    def step(self, action):
        assert action.shape == (7,) and action.dtype == np.float32
        # Metres and radians of the training data, and the gripper's convention.
        assert np.abs(action[:6]).max() < 0.5
        assert abs(action[6]) <= 1 if self.google else action[6] in (-1, 1)
        self.n += 1
        # Odd episodes are undone at the end: done on the way alone.
        done = self.n == self.limit if self.episode % 2 == 0 else self.n == 2
        return self.see(), 0.0, done, self.n >= self.limit, {}

    def close(self):
        pass

def build_maniskill2_env(name, robot, max_episode_steps, **_):
    return Scene(robot, max_episode_steps)

def get_robot_control_mode(robot, policy):
    return "of " + robot
"""


@pytest.mark.slow
def test_one_policy_of_two_robots_rolls_out_in_simplerenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained by the benchmark's config, served over gRPC, driven by the rollout's own processes."""
    monkeypatch.chdir(ROOT)
    steps = ("trainer.max_steps=2", "trainer.warmup_steps=1", "trainer.batch_size=2", "trainer.threads=1")
    line = words(
        "SimplerEnv", tmp_path, *steps, "framework.name=QwenOFT", "trainer.save_every=2", "run_id=tiny"
    )
    assert main(line) == 0
    builder = tmp_path / "simulator/simpler_env/utils/env/env_builder.py"
    builder.parent.mkdir(parents=True)
    builder.write_text(SIMULATOR)
    (tmp_path / "simulator/mani_skill2_real2sim.py").write_text(
        "from pathlib import Path; ASSET_DIR = Path()"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "simulator"))
    policy = VLAPolicy.from_pretrained(tmp_path / "runs/tiny/checkpoints/steps_2")
    assert set(policy.specs) == {"widowx", "google_robot"}
    with PolicyServer(policy) as server:
        for task, embodiment in (
            ("widowx_carrot_on_plate", "widowx"),
            ("google_robot_move_near", "google_robot"),
        ):
            settings = RolloutSettings(
                server.address,
                "simpler",
                (task,),
                episodes=2,
                seed=0,
                workers=1,
                embodiment=embodiment,
                env_options={"max_steps": 5},
                videos="none",
            )
            results = rollout(settings, tmp_path / embodiment)
            assert results["complete"], [e["error"] for e in results["episodes"]]
            assert [(e["success"], e["steps"]) for e in results["episodes"]] == [(True, 5), (False, 5)]
            averages = runpy.run_path(str(ROOT / "examples/SimplerEnv/eval_files/averages.py"))
            assert "50.0%  (2 of " in averages["summary"]([results])


def test_looks_of_simplerenv_count_alike() -> None:
    summary = runpy.run_path(str(ROOT / "examples/SimplerEnv/eval_files/averages.py"))["summary"]

    def of(task: str, outcomes: dict[int, bool]) -> dict[str, Any]:
        episodes = [{"task": task, "seed": s, "success": ok, "error": None} for s, ok in outcomes.items()]
        episodes.append({"task": task, "seed": 3, "success": None, "error": "the simulator process died"})
        return {"settings": {"env_options": {"setting": "variant_aggregation"}}, "episodes": episodes}

    # Three of the first look fail and the one of the second succeeds: a half, not a quarter.
    top = of("google_robot_open_top_drawer", {0: False, 1: False, 2: False, 9: True})
    closed = of("google_robot_close_top_drawer", {0: True})
    stacked = of("widowx_stack_cube", {0: False, 1: True})
    stacked["settings"]["env_options"] = {}
    for episode in stacked["episodes"]:
        episode["score"] = 1.0
    assert summary([stacked]).splitlines() == [
        "visual_matching  WidowX: 50.0%  (2 of 24 episodes)",
        "    stack cube 50.0%, grasped 100.0%",
    ]
    assert summary([top, closed]).splitlines() == [
        "variant_aggregation  drawer: 75.0%  (5 of 378 episodes)",
        "    open 50.0%",
        "    close 100.0%",
    ]


def test_chains_of_calvin_are_counted_by_length() -> None:
    program = runpy.run_path(str(ROOT / "examples/calvin/eval_files/chain_lengths.py"))
    done = ["1_open_drawer", "2_turn_on_led", "3_lift_red_block_table", "4_stack_block", "5_close_drawer"]
    episodes: list[dict[str, Any]] = [
        {"achieved": done[:n], "error": None, "seed": i} for i, n in enumerate((0, 1, 1, 5))
    ]
    episodes.append({"achieved": [], "error": "the simulator process died", "seed": 4})
    assert program["summary"]({"episodes": episodes}) == (
        "1/5: 75.0%  2/5: 25.0%  3/5: 25.0%  4/5: 25.0%  5/5: 25.0%  mean length 1.75 over 4 chains"
    )
    chains = [{"tasks": [name[2:] for name in done]}] * 2
    assert program["by_task"]({"episodes": episodes}, chains).splitlines() == [
        "close_drawer: 1 of 1",
        "lift_red_block_table: 1 of 1",
        "open_drawer: 3 of 4",
        "stack_block: 1 of 1",
        "turn_on_led: 1 of 3",
    ]
    columns = {name: f"observation.images.{name}" for name in calvin.CAMERAS}
    assert load_robot(ROBOTS / "calvin.yaml").cameras == columns  # what vla-data calvin writes


def test_chains_are_written_as_the_client_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CALVIN's own functions draw them (stood in for here), or a file of sequences names them."""
    sequences, states = ModuleType("calvin_agent.evaluation.multistep_sequences"), ModuleType("states")
    sequences.get_sequences = lambda count: [({"led": i}, ("open_drawer",)) for i in range(count)]  # type: ignore[attr-defined]
    states.get_env_state_for_initial_condition = lambda start: (  # type: ignore[attr-defined]
        np.zeros(15),
        np.full(24, float(start["led"])),
    )
    for name in ("calvin_agent", "calvin_agent.evaluation"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, sequences.__name__, sequences)
    monkeypatch.setitem(sys.modules, "calvin_agent.evaluation.utils", states)
    write = runpy.run_path(str(ROOT / "examples/calvin/eval_files/write_chains.py"))["main"]
    path, given = tmp_path / "chains.json", tmp_path / "eval_sequences.json"
    write(str(path))
    assert len(calvin.read_chains(str(path))) == 1000
    given.write_text(json.dumps([[{"led": 7}, ["turn_on_led", "close_drawer"]]]))
    write(str(path), str(given))
    (chain,) = calvin.read_chains(str(path))
    assert chain.tasks == ("turn_on_led", "close_drawer")
    assert chain.scene[0] == 7


def test_perturbations_of_libero_plus_are_counted_by_kind() -> None:
    program = runpy.run_path(str(ROOT / "examples/LIBERO-plus/eval_files/by_perturbation.py"))
    kinds = {
        "libero_goal": [{"id": 1, "category": "Sensor Noise"}, {"id": 2, "category": "Light Conditions"}]
    }
    episodes = [
        {"task": "libero_goal_0", "success": True, "error": None},
        {"task": "libero_goal_1", "success": False, "error": None},
        {"task": "libero_goal_1", "success": None, "error": "not run"},
    ]
    assert program["summary"]({"episodes": episodes}, kinds).splitlines() == [
        "Light Conditions: 0.0% of 1",
        "Sensor Noise: 100.0% of 1",
        "all: 50.0% of 2",
    ]
