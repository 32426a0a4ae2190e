"""Several moments as one observation: names, order, and what stands in before the first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import ConfigError, SpecMismatch
from vla_core.history import History, check_deltas, deltas_of, present, spec_over
from vla_core.specs import ObservationSpec, check_observation
from vla_core.testing import make_spec
from vla_core.transforms import Pipeline
from vla_core.types import Observation

SPEC = make_spec()
DELTAS = (-3, -1, 0)


def _observation(t: int) -> Observation:
    cameras = SPEC.observation.cameras
    return Observation(
        images={c.name: np.full((c.height, c.width, 3), t, np.uint8) for c in cameras},
        instruction=f"step {t}",
        state=np.full(SPEC.observation.state_dim, t, np.float32),
        intrinsics={cameras[0].name: t * np.eye(3, dtype=np.float32)},
    )


def test_names_say_the_moment_and_come_back() -> None:
    over = spec_over(SPEC.observation, DELTAS)
    assert [c.name for c in over.cameras][:3] == [
        f"{SPEC.observation.cameras[0].name}{t}" for t in ("@-3", "@-1", "")
    ]
    assert over.state[-len(SPEC.observation.state) :] == SPEC.observation.state
    assert over.state_dim == 3 * SPEC.observation.state_dim
    assert deltas_of(over) == DELTAS
    assert deltas_of(SPEC.observation) == (0,)
    with pytest.raises(SpecMismatch, match="@-3"):
        check_observation(over, SPEC.observation, ("the policy", "the robot"))


@pytest.mark.parametrize("deltas", [(), (-1,), (0, -1), (-1, -1, 0), (0, 1)])
def test_moments_that_are_none(deltas: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"n_obs: must be ascending steps that end with the present"):
        check_deltas(deltas, "n_obs")


def test_the_first_observation_stands_in_for_what_was_before() -> None:
    history, camera = History(DELTAS), SPEC.observation.cameras[0].name
    for _ in range(2):
        history.reset()
        for t in range(6):
            seen = history.add(_observation(t))
            for delta in DELTAS:
                name = f"{camera}@{delta}" if delta else camera
                assert int(seen.images[name][0, 0, 0]) == max(0, t + delta)
                assert seen.intrinsics is not None
                assert seen.intrinsics[name][0, 0] == max(0, t + delta)
            assert seen.state is not None
            assert seen.state.reshape(3, -1)[:, 0].tolist() == [max(0, t + d) for d in DELTAS]
            assert seen.instruction == f"step {t}"
            assert list(present(seen.images)) == [c.name for c in SPEC.observation.cameras]


def test_a_groups_mode_holds_for_its_earlier_moments() -> None:
    over = replace(SPEC, observation=spec_over(SPEC.observation, (-1, 0)))
    rows = np.random.default_rng(0).normal(size=(50, over.observation.state_dim)).astype(np.float32)
    stats = {"state": type(SPEC.statistics["state"]).from_rows(rows), "action": SPEC.statistics["action"]}
    over = replace(over, statistics=type(SPEC.statistics)(stats))
    first = SPEC.observation.state[0].name
    node = {"name": "normalize", "groups": {f"state.{first}": "none"}}
    slices, state = over.observation.state_slices(), rows[7]
    out = Pipeline([node], over).observe(replace(_observation(0), state=state)).state
    assert out is not None
    for name in (first, f"{first}@-1"):
        assert np.array_equal(out[slices[name]], state[slices[name]])
    node["groups"][f"state.{first}@-1"] = "mean_std"
    out = Pipeline([node], over).observe(replace(_observation(0), state=state)).state
    assert out is not None
    assert not np.array_equal(out[slices[f"{first}@-1"]], state[slices[f"{first}@-1"]])


def test_views_of_a_camera_are_shifted_alike() -> None:
    over = spec_over(SPEC.observation, (-1, 0))
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    cameras = tuple(replace(c, height=24, width=24) for c in over.cameras)
    spec = replace(SPEC, observation=ObservationSpec(cameras, over.state))
    observation = Observation({c.name: image for c in cameras}, "go")
    for seed in range(5):
        seen = (
            Pipeline([{"name": "random_shift", "pixels": 8}], spec)
            .steps[0]
            .images(observation, np.random.default_rng(seed))
        )
        for camera in SPEC.observation.cameras:
            assert np.array_equal(seen.images[camera.name], seen.images[f"{camera.name}@-1"])


def test_arrays_that_are_written_to_again_are_those_of_their_moment() -> None:
    """As a simulator's do, which gives out views of its own memory."""
    history, seen = History(DELTAS), _observation(0)
    camera = SPEC.observation.cameras[0].name
    for t in range(5):
        for array in (seen.images[camera], seen.state):
            array[:] = t
        over = history.add(seen)
    shown = [int(over.images[f"{camera}{moment}"][0, 0, 0]) for moment in ("@-3", "@-1", "")]
    assert shown == [1, 3, 4]
    assert over.state is not None
    assert over.state.reshape(3, -1)[:, 0].tolist() == [1, 3, 4]
