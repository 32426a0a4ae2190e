"""SimplerEnv's client against a stand-in for its simulator.

The stand-in has the observations and calls of simpler-env/SimplerEnv at commit 4ab7178 and simpler-env/
ManiSkill2_real2sim at ef7a4d4: ``obs["image"][camera]["rgb"]`` (480 x 640, or 512 x 640 of the Google robot),
``obs["agent"]["base_pose"]`` and ``tcp.pose`` as position and quaternion w, x, y, z; actions are position,
rotation vector and gripper.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vla_core.config import build_config
from vla_core.envs._fixed_angles import angles_of, matrix_of
from vla_core.envs._simpler_robots import StickyGripper
from vla_core.envs.simpler import TASKS, SimplerEnv
from vla_core.envs.simpler_protocol import TASKS as OFFICIAL
from vla_core.envs.simpler_protocol import sweep
from vla_core.errors import ConfigError
from vla_core.rotations import to_matrix

SETTINGS = ("visual_matching", "variant_aggregation")
BASE = np.array([0.147, 0.028, 0.87, 0.0, 0.0, 0.0, 1.0])  # half a turn about z, as the robot stands
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # the hand points down


class Simulator:
    """Replays one observation and keeps what it was given; ``done`` at the steps named."""

    def __init__(self, google: bool, max_episode_steps: int, done: tuple[int, ...] = ()) -> None:
        self.google = google
        self.camera, shape = (
            ("overhead_camera", (512, 640, 3)) if google else ("3rd_view_camera", (480, 640, 3))
        )
        self.image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        self.unwrapped, self.limit, self.done = self, max_episode_steps, done
        self.agent = SimpleNamespace(get_gripper_closedness=lambda: 0.25)
        # 0.3 m before the base and 0.2 m above it; the base looks the other way than the world.
        self.tcp = SimpleNamespace(
            pose=SimpleNamespace(p=BASE[:3] + np.array([-0.3, 0.0, 0.2]), q=self.hand())
        )
        self.actions: list[np.ndarray] = []
        self.resets: list[tuple[int | None, dict]] = []

    @staticmethod
    def hand() -> np.ndarray:
        """w, x, y, z of a hand that points down and is turned by 0.1 rad about the base's z."""
        from vla_core.rotations import from_matrix

        turn = (
            to_matrix(np.roll(BASE[3:], -1), "quaternion_xyzw") @ matrix_of(np.array([0.0, 0.0, 0.1])) @ DOWN
        )
        return np.roll(from_matrix(turn, "quaternion_xyzw"), 1)

    def get_language_instruction(self) -> str:
        return "open top drawer" if len(self.actions) < 2 else "place apple into top drawer"

    def _observe(self) -> dict:
        return {"image": {self.camera: {"rgb": self.image}}, "agent": {"base_pose": BASE}, "extra": {}}

    def reset(self, options: dict, seed: int | None = None) -> tuple[dict, dict]:
        self.resets.append((seed, options))
        self.actions.clear()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert action.shape == (7,)
        assert action.dtype == np.float32
        self.actions.append(action)
        n = len(self.actions)
        info = {} if self.google else {"episode_stats": {"is_src_obj_grasped": n >= 2}}
        return self._observe(), 0.0, n in self.done, n >= self.limit, info

    def close(self) -> None:
        pass


@pytest.fixture
def built() -> list[tuple[str, dict]]:
    """Ids and keywords of the environments that were built."""
    return []


@pytest.fixture
def make(monkeypatch, built):
    def build(task: str, done: tuple[int, ...] = (), **options):
        def prepackaged(name, **kwargs):
            return Simulator(name.startswith("google"), done=done, **kwargs)

        def official(name, **kwargs):
            built.append((name, kwargs))
            return Simulator("google" in kwargs["robot"], kwargs["max_episode_steps"], done)

        packaged, builder = ModuleType("simpler_env"), ModuleType("simpler_env.utils.env.env_builder")
        packaged.make, builder.build_maniskill2_env = prepackaged, official
        builder.get_robot_control_mode = lambda robot, policy: f"of {robot}"
        assets = ModuleType("mani_skill2_real2sim")
        assets.ASSET_DIR = Path("assets")
        for module in (packaged, builder, assets):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for parent in ("simpler_env.utils", "simpler_env.utils.env"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        return SimplerEnv(build_config(SimplerEnv.Config, {"task": task, **options}, "env"))

    return build


def test_the_stand_in_has_the_real_ones_keys_and_shapes() -> None:
    """``simpler_recording.npz`` is of the real simulator (``record_simpler.py``)."""
    recording = np.load(Path(__file__).with_name("simpler_recording.npz"))
    for google, robot in ((False, "widowx"), (True, "google_robot")):
        stand_in, seen = Simulator(google, 1), json.loads(str(recording[f"{robot}/seen"]))
        raw, _ = stand_in.reset({})
        picture, base = raw["image"][stand_in.camera]["rgb"], raw["agent"]["base_pose"]
        assert seen[f"image.{stand_in.camera}.rgb"] == [str(picture.dtype), *picture.shape]
        assert seen["agent.base_pose"] == ["float32", *base.shape]
    np.testing.assert_allclose(recording["widowx/base"][0], BASE, atol=1e-6)


def test_fixed_angles_are_about_the_axes_of_the_frame() -> None:
    quarter = np.pi / 2
    # x first, then z of the fixed frame: y goes to z and stays there; intrinsic angles would take it
    # elsewhere.
    np.testing.assert_allclose(
        matrix_of(np.array([quarter, 0.0, quarter])) @ [0, 1, 0], [0, 0, 1], atol=1e-12
    )
    for angles in np.random.default_rng(0).uniform(-1.4, 1.4, (20, 3)):
        np.testing.assert_allclose(angles_of(matrix_of(angles)), angles, atol=1e-12)
    up = matrix_of(np.array([0.3, quarter, 0.0]))
    np.testing.assert_allclose(matrix_of(angles_of(up)), up, atol=1e-7)


def test_bridge_sees_the_hand_from_the_base_relative_to_one_that_points_down(make) -> None:
    env = make("widowx_carrot_on_plate")
    seen = env.reset(0)
    np.testing.assert_allclose(seen.state, [0.3, 0.0, 0.2, 0.0, 0.0, 0.1, 0.75], atol=1e-6)  # 1 is open
    assert seen.images["front"].shape == (256, 256, 3)
    assert seen.embodiment == "widowx"
    assert env.observation_spec.state_dim == seen.state.size == 7


def test_fractal_sees_a_quaternion_and_a_closed_gripper(make) -> None:
    env = make("google_robot_move_near")
    seen = env.reset(0)
    turn = to_matrix(seen.state[3:7], "quaternion_xyzw")
    np.testing.assert_allclose(turn, matrix_of(np.array([0.0, 0.0, 0.1])) @ DOWN, atol=1e-6)
    assert seen.state[7] == pytest.approx(0.25)  # 1 is closed
    assert seen.images["head"].shape == (256, 320, 3)
    assert env.action_spec.control_hz == 3.0


def test_a_widowx_command_is_a_rotation_vector_and_an_open_or_closed_gripper(make) -> None:
    env = make("widowx_stack_cube")
    env.reset(0)
    angles = np.array([0.2, -0.1, 0.3])
    for wish, gripper in ((0.9, 1.0), (0.5, -1.0), (0.1, -1.0)):
        env.step(np.array([0.01, -0.02, 0.03, *angles, wish], np.float32))
        sent = env._env.actions[-1]
        np.testing.assert_allclose(sent[:3], [0.01, -0.02, 0.03], atol=1e-7)
        np.testing.assert_allclose(to_matrix(sent[3:6], "axis_angle"), matrix_of(angles), atol=1e-6)
        assert sent[6] == gripper


def test_the_google_gripper_sticks_to_a_change() -> None:
    gripper = StickyGripper(3)
    # Open at first; closing is +1 and held for three steps, whatever is wished meanwhile.
    assert [gripper.command(w) for w in (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)] == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert [gripper.command(w) for w in (1.0, 1.0, 1.0, 1.0)] == [-1.0, -1.0, -1.0, 0.0]
    assert gripper.command(0.8) == pytest.approx(0.2)  # a small change is passed on
    gripper.reset()
    assert gripper.command(0.0) == 0.0  # what a new episode wishes first is no change


def test_prepackaged_episodes_are_the_benchmarks_own(make) -> None:
    setting = {"setting": "prepackaged"}
    widowx, near = make("widowx_spoon_on_towel", **setting), make("google_robot_move_near", **setting)
    for env, count in ((widowx, 24), (near, 60)):
        for seed in (3, count + 3):
            env.reset(seed)
            # Made anew, so that nothing is left of an episode before; what is drawn is drawn by the seed.
            assert env._env.resets == [(seed, {"obj_init_options": {"episode_id": 3}})]
    can = make("google_robot_pick_coke_can", **setting)
    places = set()
    for seed in range(25):
        can.reset(seed)
        places.add(tuple(can._env.resets[-1][1]["obj_init_options"]["init_xy"]))
    assert len(places) == 25
    assert min(places) == (-0.35, -0.02)
    assert max(places) == (-0.12, 0.42)


def test_the_official_settings_have_the_scripts_episodes() -> None:
    """Counts. The scripts themselves were run once with a program that notes its words in place of Python:
    the 2682 episodes of all tasks were equal."""
    variants = {
        "google_robot_pick_standing_coke_can": ((4, 25), (9, 25)),
        "google_robot_move_near": ((4, 60), (8, 60)),
        "google_robot_open_top_drawer": ((4, 9), (7, 9)),
        "google_robot_place_apple_in_closed_top_drawer": ((4, 27), (7, 27)),
    }
    for task, counts in variants.items():
        for setting, count in zip(("visual_matching", "variant_aggregation"), counts, strict=True):
            episodes = sweep(task, setting)
            assert (len(episodes.variants), len(episodes.starts)) == count
            assert len({variant.name for variant in episodes.variants}) == count[0]
    in_all = {
        setting: sum(len(sweep(t, setting)) for t in OFFICIAL if t.startswith("google"))
        for setting in SETTINGS
    }
    assert in_all == {"visual_matching": 864, "variant_aggregation": 1722}
    assert [len(sweep(t, "visual_matching")) for t in OFFICIAL if t.startswith("widowx")] == [24] * 4
    assert set(OFFICIAL) < set(TASKS)


def test_an_episode_is_built_as_the_scripts_build_it(make, built) -> None:
    env = make("google_robot_close_middle_drawer")
    env.reset(9 + 2)  # the second colour of the arm, the third place
    name, keywords = built[-1]
    assert name == "CloseMiddleDrawerCustomInScene-v0"
    assert keywords == {
        "shader_dir": "rt",
        "station_name": "mk_station_recolor",
        "light_mode": "simple",
        "disable_bad_material": True,
        "urdf_version": "recolor_tabletop_visual_matching_1",
        "rgb_overlay_path": str(Path("assets/real_inpainting/open_drawer_a2.png")),
        "obs_mode": "rgbd",
        "robot": "google_robot_static",
        "scene_name": "dummy_drawer",
        "control_mode": "of google_robot_static",
        "control_freq": 3,
        "sim_freq": 513,
        "max_episode_steps": 113,
        "camera_cfgs": {"add_segmentation": True},
    }
    options = env._env.resets[-1][1]
    assert list(options["robot_init_options"]["init_xy"]) == [0.889, -0.203]
    np.testing.assert_allclose(
        options["robot_init_options"]["init_rot_quat"], [np.sin(0.03), 0, 0, np.cos(0.03)], atol=1e-12
    )
    assert list(options["obj_init_options"]["init_xy"]) == [0, 0]


def test_every_episode_has_a_simulator_of_its_own(make, built) -> None:
    """As of SimplerEnv's evaluator, and no seed, for which the simulator draws the same in each."""
    env = make("google_robot_move_near", setting="variant_aggregation")
    assert len(built) == 1  # what is missing shows before the first episode
    for seed in (0, 0, 59, 60, 241):
        env.reset(seed)
        assert [reset[0] for reset in env._env.resets] == [None]
    looks = [
        (keywords["scene_name"].removeprefix("google_pick_coke_can_1_v4"), name) for name, keywords in built
    ]
    plain = "MoveNearGoogleInScene-v0"
    assert looks == [("", plain)] * 3 + [("_alt_background", plain), ("", plain)]
    assert built[-1][1]["slightly_brighter_lighting"] is True
    assert not any("rgb_overlay_path" in keywords for _, keywords in built)
    assert env._env.resets[-1][1]["obj_init_options"] == {"episode_id": 1}


def test_the_eggplants_scene_is_the_sink(make, built) -> None:
    make("widowx_put_eggplant_in_basket").reset(23)
    name, keywords = built[-1]
    assert name == "PutEggplantInBasketScene-v0"
    assert (keywords["robot"], keywords["scene_name"]) == ("widowx_sink_camera_setup", "bridge_table_1_v2")
    assert (keywords["control_freq"], keywords["sim_freq"], keywords["max_episode_steps"]) == (5, 500, 120)
    assert keywords["rgb_overlay_path"].endswith("bridge_sink.png")


def test_success_is_that_of_the_last_step_unless_asked_otherwise(make) -> None:
    action = np.zeros(7, np.float32)

    def outcomes(**options):
        env = make("widowx_spoon_on_towel", max_steps=3, **options)
        env.reset(0)
        return [(r.success, r.terminated, r.truncated) for r in (env.step(action) for _ in range(3))]

    undone = outcomes(done=(2,))
    assert undone == [(False, False, False), (False, False, False), (False, False, True)]
    assert outcomes(done=(2, 3))[-1] == (True, True, False)
    assert outcomes(done=(2,), success="any")[1] == (True, True, False)


def test_partial_success_of_widowx_is_a_grasp(make) -> None:
    for task, scores in (("widowx_stack_cube", [0.0, 1.0]), ("google_robot_move_near", [None, None])):
        env = make(task, max_steps=2)
        env.reset(0)
        assert [env.step(np.zeros(7, np.float32)).score for _ in range(2)] == scores


def test_a_new_subtask_is_said(make) -> None:
    env = make("google_robot_place_apple_in_closed_top_drawer")
    assert env.reset(0).instruction == "open top drawer"
    said = [env.step(np.zeros(7, np.float32)).observation.instruction for _ in range(2)]
    assert said == ["open top drawer", "place apple into top drawer"]


def test_mistakes_are_one_line(make, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'widowx_stack_cube'"):
        make("widowx_stack_cubes")
    with pytest.raises(ConfigError, match="'visual_matching' has no 'google_robot_open_drawer'"):
        make("google_robot_open_drawer")
    with pytest.raises(ConfigError, match="no variants"):
        make("widowx_stack_cube", setting="variant_aggregation")
    env = make("widowx_stack_cube")
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros(7, np.float32))
    for name in ("simpler_env", "simpler_env.utils.env.env_builder"):
        monkeypatch.setitem(sys.modules, name, None)
    for setting in ("prepackaged", "visual_matching"):
        with pytest.raises(ConfigError, match="examples/SimplerEnv"):
            SimplerEnv(SimplerEnv.Config(setting=setting))
    assert len(TASKS) == len(SimplerEnv.tasks())


def test_clients_import_without_simulators_and_say_what_is_missing() -> None:
    """As in a simulator's Python that has another simulator, or in none."""
    code = """
import sys
for name in ("torch", "gymnasium", "hydra", "simpler_env", "libero", "omnigibson", "robocasa", "envs"):
    sys.modules[name] = None
from vla_core import registry
from vla_core.errors import ConfigError
for name in ("simpler", "gr1_tabletop", "robotwin", "calvin", "libero_plus", "behavior"):
    env = registry.load("vla.envs", name)
    try:
        env(env.Config())
    except ConfigError as error:
        assert str(error).startswith("env"), error
    else:
        raise AssertionError(f"{name} opened")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
