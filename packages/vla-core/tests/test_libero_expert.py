"""The scripted demonstrator of LIBERO in a world without physics. Solving the tasks needs the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core.envs import libero
from vla_core.envs._libero_expert import PickAndPlace
from vla_core.envs.libero import LiberoConfig, LiberoEnv
from vla_core.errors import ConfigError
from vla_core.rotations import convert, from_matrix, to_matrix


class World:
    """The hand goes half of where it is sent; a closed one carries what is between its fingers."""

    def __init__(self, thing="milk_1", place="plate_1", goal=None):
        self.thing, self.place = thing, place
        self.goal = goal or [["on", thing, place]]
        self.objects = [thing, place, "other_1"]
        self.at = {
            thing: np.array([0.1, -0.2, 0.07]),
            place: np.array([0.0, 0.25, 0.0]),
            "other_1": np.array([0.1, -0.1, 0.0]),
        }
        self.hand, self.turned, self.held = np.array([-0.2, 0.0, 0.3]), np.diag([1.0, -1.0, -1.0]), False
        self.tilt(0.2)
        self.slips = False

    def tilt(self, angle):
        self.turned = to_matrix(np.array([0.0, 0.0, angle]), "axis_angle") @ self.turned

    def extent(self, name):
        size = {self.thing: [0.027, 0.027, 0.07], self.place: [0.07, 0.07, 0.02]}[name]
        return -np.array(size), np.array(size)

    @property
    def raw(self):
        quaternion = from_matrix(self.turned, "quaternion_xyzw")
        pose = {"robot0_eef_pos": self.hand.copy(), "robot0_eef_quat": quaternion}
        return pose | {f"{name}_pos": where.copy() for name, where in self.at.items()}

    def step(self, action):
        assert action.shape == (7,)
        assert np.abs(action).max() <= 1
        move = 0.5 * 0.05 * action[:3]
        self.hand += move
        self.turned = to_matrix(0.25 * action[3:6], "axis_angle") @ self.turned
        gap = self.hand - self.at[self.thing]
        self.held = action[6] > 0 and not self.slips and np.linalg.norm(gap - [0, gap[1], gap[2]]) < 0.03
        if self.held and np.abs(gap).max() < 0.08:
            self.at[self.thing] += move


@pytest.mark.parametrize(
    ("thing", "goal"),
    [("milk_1", None), ("black_bowl_1", None), ("milk_1", [["in", "milk_1", "plate_1_contain_region"]])],
)
def test_it_carries_the_object_to_its_place(thing, goal):
    world = World(thing, goal=goal)
    expert = PickAndPlace(world, world.raw)
    for _ in range(400):
        world.step(expert.action(world.raw))
        if np.linalg.norm((world.at[thing] - world.at["plate_1"])[:2]) < 0.02 and not world.held:
            break
    else:
        raise AssertionError(f"it lies at {world.at[thing]}")
    facing = np.abs(convert(from_matrix(world.turned, "axis_angle"), "axis_angle", "quaternion_xyzw"))
    np.testing.assert_allclose(facing, [1, 0, 0, 0], atol=0.02)


def test_it_tries_again_when_the_object_slips():
    world = World()
    expert = PickAndPlace(world, world.raw)
    world.slips, closed = True, 0
    for _ in range(200):
        action = expert.action(world.raw)
        opened = closed and action[6] < 0
        closed = action[6] > 0
        if opened:
            break
        world.step(action)
    assert opened, "it must see that it carries nothing"
    world.slips = False
    for _ in range(400):
        world.step(expert.action(world.raw))
    assert np.linalg.norm((world.at["milk_1"] - world.at["plate_1"])[:2]) < 0.02


def test_a_bowl_is_held_at_the_side_away_from_its_neighbour():
    world = World("black_bowl_1")
    expert = PickAndPlace(world, world.raw)
    for _ in range(40):
        world.step(expert.action(world.raw))
    assert world.hand[1] < world.at["black_bowl_1"][1] - 0.02


@pytest.mark.parametrize(
    ("goal", "complaint"),
    [
        ([["open", "cabinet_1_top_region"]], "not one object"),
        ([["on", "milk_1", "plate_1"], ["on", "other_1", "plate_1"]], "not one object"),
        ([["on", "milk_1", "stove_1_cook_region"]], "not to 'stove_1_cook_region'"),
    ],
)
def test_goals_of_another_kind_are_refused(goal, complaint):
    world = World(goal=goal)
    with pytest.raises(ConfigError, match=complaint):
        PickAndPlace(world, world.raw)


def test_other_suites_have_no_expert(monkeypatch):
    monkeypatch.setattr(libero, "LiberoSimulator", lambda *_: World())
    env = LiberoEnv(LiberoConfig(task="libero_goal_0"))
    with pytest.raises(ConfigError, match="libero_spatial, libero_object only"):
        env.expert_action()
    with pytest.raises(ValueError, match="reset"):
        LiberoEnv(LiberoConfig()).expert_action()
