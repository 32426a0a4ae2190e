"""A contract and a robot's features: matched by name, in stated units, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import ConfigError, SpecMismatch, UserError
from vla_core.history import spec_over
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_serve.robot import RobotRepackConfig, Wiring, read_repack
from vla_serve.robot.make import make_robot
from vla_serve.robot.options import steps_of

JOINTS = GroupSpec("joints", 2, "rad")
GRIPPER = GroupSpec("gripper", 1, "1", gripper="open_positive")
SPEC = RobotSpec(
    ObservationSpec((CameraSpec("front", 4, 6),), (JOINTS, GRIPPER)), ActionSpec((JOINTS, GRIPPER), 4, 10.0)
)
NAMES = {"joints": ("pan.pos", "lift.pos"), "gripper": ("gripper.pos",)}


class Arm:
    """A user's own robot: two joints in degrees, a gripper in percent, one camera."""

    def __init__(self, camera: str = "front", size: tuple[int, int] = (4, 6)) -> None:
        numbers = {"pan.pos": float, "lift.pos": float, "gripper.pos": float}
        self.observation_features = {**numbers, camera: (*size, 3)}
        self.action_features = dict(numbers)
        self.seen = {"pan.pos": 90.0, "lift.pos": -45.0, "gripper.pos": 50.0}
        self.seen[camera] = np.full((*size, 3), 7, np.uint8)
        self.sent = []

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self):
        return self.seen

    def send_action(self, action):
        self.sent.append(action)
        return action


def repack(**more):
    named = {"state": {"joints": NAMES["joints"]}, "action": {"joints": NAMES["joints"]}}
    return RobotRepackConfig(**{**named, "units": {"joints": "deg", "gripper": "%"}, **more})


def test_earlier_moments_are_not_made_of_the_present():
    spec = replace(SPEC, observation=spec_over(SPEC.observation, (-2, 0)))
    with pytest.raises(SpecMismatch, match=r"looks at earlier moments \(-2, 0 steps\)"):
        Wiring(spec, Arm(), repack(cameras={"front@-2": "front"}))


def test_numbers_come_and_go_in_the_units_of_each_side():
    wiring = Wiring(SPEC, Arm(), repack())
    observation = wiring.observe(Arm().seen, "go")
    np.testing.assert_allclose(observation.state, [np.pi / 2, -np.pi / 4, 0.5], rtol=1e-6)
    assert observation.images["front"].shape == (4, 6, 3)
    assert observation.instruction == "go"
    sent = wiring.command(np.array([np.pi, 0.0, 1.0]))
    assert sent == pytest.approx({"pan.pos": 180.0, "lift.pos": 0.0, "gripper.pos": 100.0})
    said = {"pan.pos": 18.0, "lift.pos": 0.0, "gripper.pos": 10.0}
    np.testing.assert_allclose(wiring.really_sent(said, np.zeros(3)), [np.pi / 10, 0, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(wiring.really_sent(None, np.ones(3)), np.ones(3))
    assert "  action  joints = robot's pan.pos, lift.pos, in deg" in list(wiring.lines())


def test_a_number_is_not_read_in_one_unit_and_commanded_in_another():
    """A step of 1 cm, added to a place in metres, would be a step of a metre."""
    hand = GroupSpec("hand", 2, "m"), GroupSpec("hand", 2, "cm", representation="delta")
    spec = replace(
        SPEC, observation=replace(SPEC.observation, state=hand[:1]), action=ActionSpec(hand[1:], 4, 10.0)
    )
    named = {
        "state": {"hand": NAMES["joints"]},
        "action": {"hand": NAMES["joints"]},
        "constant": {"gripper.pos": 0.0},
    }
    with pytest.raises(
        SpecMismatch, match=r"'pan\.pos' would be read in m .* commanded in cm .* under 'units'"
    ):
        Wiring(spec, Arm(), RobotRepackConfig(**named))
    wiring = Wiring(spec, Arm(), RobotRepackConfig(**named, units={"hand": "m"}))
    assert wiring.command(np.array([50.0, 0.0]))["pan.pos"] == pytest.approx(0.5)
    # Changes are another number than the place that they change.
    Wiring(spec, Arm(), RobotRepackConfig(**named, commands={"hand": "delta"}))


def test_a_group_is_found_by_its_own_name_in_three_ways():
    groups = (GroupSpec("x", 1, "m"), GroupSpec("y", 1, "m"), GroupSpec("z", 2, "m"), GroupSpec("v", 3, "m"))
    spec = RobotSpec(ObservationSpec((), groups), ActionSpec(groups, 1, 10.0))
    arm = Arm()
    features = {"v": (3,), "z.1": float, "z.0": float, "y.pos": float, "x": float}
    arm.observation_features = arm.action_features = features
    seen = {"v": np.array([5.0, 6, 7]), "z.1": 4.0, "z.0": 3.0, "y.pos": 2.0, "x": 1.0}
    wiring = Wiring(spec, arm, RobotRepackConfig())
    np.testing.assert_array_equal(wiring.observe(seen, "").state, [1, 2, 3, 4, 5, 6, 7])
    sent = wiring.command(np.arange(1.0, 8.0))
    np.testing.assert_array_equal(sent.pop("v"), [5, 6, 7])
    assert sent == {"x": 1.0, "y.pos": 2.0, "z.0": 3.0, "z.1": 4.0}


@pytest.mark.parametrize(
    ("arm", "more", "message"),
    [
        (Arm("top"), {}, r"observation.cameras\[front\]: the robot has no camera 'front' \(it has top\)"),
        (Arm(size=(6, 4)), {}, r"has \[4, 6, 3\] \(rows.*robot's 'front' \(6, 4, 3\)"),
        (Arm(), {"state": {}}, "state group 'joints' .2 dims.: the robot has no numbers of that name"),
        (Arm(), {"state": {"joints": ("pan.pos",)}}, r"repack.state.joints: \['pan.pos'\] are not 2 numbers"),
        (Arm(), {"cameras": {"fornt": "x"}}, "repack.cameras: 'fornt' is not in the contract .*'front'"),
        (Arm(), {"units": {"joints": "cm"}}, "repack.units.joints: 'cm' cannot be made of"),
        (Arm(), {"action": {"joints": ("pan.pos", "gripper.pos")}}, "'gripper.pos' .* commanded twice"),
        (Arm(), {"constant": {"base": 0.0}}, "repack.constant: the robot takes no 'base'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(arm, more, message):
    with pytest.raises((ConfigError, SpecMismatch), match=message):
        Wiring(SPEC, arm, repack(**more))


def test_every_part_of_the_robot_is_commanded_or_given_a_constant():
    arm = Arm()
    arm.action_features["base"] = float
    with pytest.raises(SpecMismatch, match="no action group commands base"):
        Wiring(SPEC, arm, repack())
    wiring = Wiring(SPEC, arm, repack(constant={"base": 0.5}))
    assert wiring.command(np.zeros(3))["base"] == 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pan.pos", float("nan"), "pan.pos, lift.pos gave .*finite"),
        ("front", np.zeros((4, 6, 3), np.float32), "camera 'front' gave float32"),
        ("gripper.pos", None, "lacks 'gripper.pos'"),
    ],
)
def test_what_a_robot_gives_is_checked(key, value, message):
    seen = {k: v for k, v in {**Arm().seen, key: value}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        Wiring(SPEC, Arm(), repack()).observe(seen, "go")


def test_a_repack_file(tmp_path):
    path = tmp_path / "repack.yaml"
    path.write_text("units: {joints: deg}\nlimits: {joints: {low: [-1, -1], high: [1, 1]}}\n")
    assert read_repack(path).limits["joints"].high == (1.0, 1.0)
    for text, message in (
        ("unit: {joints: deg}", "unknown key 'repack.unit' .*units"),
        ("commands: {joints: velocity}", "velocity"),
        ("constant: {base: .nan}", "finite"),
        ("[1]", "must hold keys"),
        ("a: [", "is no YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_repack(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_repack(tmp_path / "none.yaml")


def test_a_robot_of_ones_own_is_named_by_its_class():
    robot = make_robot(["--robot.type", f"{__name__}:Arm", "--robot.camera", "wrist"])
    assert "wrist" in robot.observation_features
    for words, message in (
        ([], "--robot.type: say which robot"),
        (["--robot.type=nowhere:Arm"], "nowhere"),
        (["--robot.type", f"{__name__}:Arm", "--robot.port=1"], "unexpected keyword argument 'port'"),
        (["--robot.type=collections:OrderedDict"], "has no observation_features"),
        (["--rbot.type=x"], "unknown argument '--rbot.type=x'"),
    ):
        with pytest.raises(UserError, match=message):
            make_robot(words)


def test_largest_steps():
    assert steps_of(None, ["a", "b"]) == {}
    assert steps_of("0.5", ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert steps_of("b=2", ["a", "b"]) == {"b": 2.0}
    for text in ("fast", "a=", "a=1,b"):
        with pytest.raises(UserError, match="--max_step"):
            steps_of(text, ["a", "b"])
