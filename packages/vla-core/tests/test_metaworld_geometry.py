"""Depth, intrinsics and extrinsics agree: pixels of two cameras meet in the same world points."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("metaworld")

from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from vla_core.errors import ConfigError

SIZE = 128


@pytest.fixture(scope="module")
def observation():
    cameras = ("corner4", "topview", "corner3")
    config = MetaWorldConfig(cameras=cameras, image_size=SIZE, depth=True, intrinsics=True, extrinsics=True)
    env = MetaWorldEnv(config)
    yield env.reset(1)
    env.close()


def world_points(observation, camera):
    """Back-projected pixels ``[H, W, 3]``; pixel centres at half-integers."""
    k, pose, depth = (
        getattr(observation, kind)[camera].astype(np.float64)
        for kind in ("intrinsics", "extrinsics", "depth")
    )
    u, v = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def test_shapes_and_rotations(observation):
    for camera in observation.images:
        assert observation.depth[camera].shape == (SIZE, SIZE)
        assert observation.depth[camera].dtype == np.float32
        assert observation.intrinsics[camera].shape == (3, 3)
        rotation = observation.extrinsics[camera][:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)


def test_the_table_is_flat_at_height_zero(observation):
    for camera, least in (("topview", 0.4), ("corner4", 0.2), ("corner3", 0.2)):
        height = world_points(observation, camera)[..., 2]
        assert np.mean(np.abs(height) < 0.003) > least, camera


@pytest.mark.parametrize("pair", [("corner4", "topview"), ("topview", "corner3"), ("corner3", "corner4")])
def test_two_cameras_see_the_same_world(observation, pair):
    here, there = pair
    points = world_points(observation, here).reshape(-1, 3)
    colours = observation.images[here].reshape(-1, 3).astype(int)
    pose = np.linalg.inv(observation.extrinsics[there].astype(np.float64))
    k = observation.intrinsics[there].astype(np.float64)
    local = points @ pose[:3, :3].T + pose[:3, 3]
    pixel = (local @ k.T)[:, :2] / local[:, 2:]
    inside = (local[:, 2] > 0) & (pixel > 0).all(1) & (pixel < SIZE).all(1)
    assert inside.mean() > 0.4
    x, y = pixel[inside].astype(int).T
    error = np.abs(observation.depth[there][y, x] - local[inside, 2])
    seen = error < 0.05  # the others are hidden from the second camera
    assert seen.mean() > 0.55
    assert np.median(error[seen]) < 0.005
    difference = np.abs(observation.images[there][y, x].astype(int) - colours[inside]).mean(1)
    assert np.median(difference[seen]) < 8


def test_orbiting_cameras_keep_the_pivot_and_move_with_the_seed():
    """Same world under other cameras: the depth still back-projects to a flat table at height zero."""
    options = {"image_size": SIZE, "depth": True, "intrinsics": True, "extrinsics": True}
    still = MetaWorldEnv(MetaWorldConfig(**options))
    moved = MetaWorldEnv(MetaWorldConfig(**options, camera_orbit=(10.0, 20.0)))
    pivot = np.array([0.0, 0.6, 0.1])
    for seed in (4, 5):
        before, after = still.reset(seed), moved.reset(seed)
        assert np.array_equal(before.state, after.state)
        assert before.instruction == after.instruction
        for camera in after.images:
            old, new = (o.extrinsics[camera].astype(np.float64) for o in (before, after))
            arms = [pose[:3, 3] - pivot for pose in (old, new)]
            lengths = [np.linalg.norm(arm) for arm in arms]
            assert lengths[0] == pytest.approx(lengths[1], abs=1e-5)
            angle = np.rad2deg(np.arccos(arms[0] @ arms[1] / (lengths[0] * lengths[1])))
            assert 9.9 < angle < 20.1
            # The pivot stays where it was in the image.
            seen = [(np.linalg.inv(pose) @ [*pivot, 1.0])[:3] for pose in (old, new)]
            assert np.allclose(*seen, atol=1e-5)
            height = world_points(after, camera)[..., 2]
            assert np.mean(np.abs(height) < 0.003) > 0.15, camera
    again = moved.reset(4)
    first = moved.reset(5)
    assert not np.allclose(again.extrinsics["topview"], first.extrinsics["topview"])
    assert np.array_equal(moved.reset(4).images["topview"], again.images["topview"])
    still.close()
    moved.close()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"camera_orbit": (20.0, 10.0)}, "camera_orbit"),
        ({"camera_orbit": (0.0, 120.0)}, "camera_orbit"),
        ({"camera_orbit": (0.0, 10.0), "cameras": ("gripperPOV",)}, "gripperPOV"),
    ],
)
def test_wrong_orbits(options, what):
    with pytest.raises(ConfigError, match=what):
        MetaWorldEnv(MetaWorldConfig(**options))
