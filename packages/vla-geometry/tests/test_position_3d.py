import dataclasses

import pytest
import torch
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError
from vla_geometry import Position3D
from vla_geometry.fusions._attention import sinusoid
from vla_geometry.points import patch_points
from vla_geometry.rays import pinhole_rays

K = torch.tensor([[10.0, 0.0, 6.0], [0.0, 20.0, 4.0], [0.0, 0.0, 1.0]])


def intrinsics(rows=1, views=1):
    return K.repeat(rows, views, 1, 1)


def test_points_are_metric():
    """A wall two metres away: patch centres lie where a pinhole puts them."""
    points, known = patch_points(torch.full((1, 1, 8, 12), 2.0), intrinsics(), None, (2, 3))
    assert known.all()
    assert points.shape == (1, 1, 2, 3, 3)
    for row, v in enumerate((2.0, 6.0)):
        for column, u in enumerate((2.0, 6.0, 10.0)):
            expected = torch.tensor([(u - 6) / 10 * 2, (v - 4) / 20 * 2, 2.0])
            assert torch.allclose(points[0, 0, row, column], expected, atol=1e-6)


def test_extrinsics_move_points_to_the_world():
    depth = 1 + torch.rand(1, 1, 8, 12)
    camera, _ = patch_points(depth, intrinsics(), None, (2, 3))
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # x forward, z up
    pose[:3, 3] = torch.tensor([0.1, 0.2, 0.3])
    world, _ = patch_points(depth, intrinsics(), pose.view(1, 1, 4, 4), (2, 3))
    x, y, z = camera.unbind(-1)
    assert torch.allclose(world, torch.stack([z + 0.1, -x + 0.2, -y + 0.3], -1), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # which would be centimetres off
        assert torch.equal(world, patch_points(depth, intrinsics(), pose.view(1, 1, 4, 4), (2, 3))[0])


@pytest.mark.parametrize("hole", [0.0, -1.0, float("nan"), float("inf")])
def test_holes_in_depth_do_not_count(hole):
    depth = torch.full((1, 1, 8, 12), 2.0)
    depth[0, 0, :4, :4] = hole  # the whole first patch
    depth[0, 0, 4:, 4:6] = hole  # half of the last row's middle patch
    points, known = patch_points(depth, intrinsics(), None, (2, 3))
    assert (~known).nonzero().tolist() == [[0, 0, 0, 0]]
    assert not points[0, 0, 0, 0].any()
    assert points[0, 0, 1, 1, 2] == pytest.approx(2.0)
    assert points[0, 0, 1, 1, 0] == pytest.approx((7.0 - 6) / 10 * 2)  # mean of its right half


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_views_without_usable_cameras_are_unknown(bad):
    depth, matrix = torch.ones(1, 2, 8, 12), intrinsics(views=2)
    matrix[0, 1] = bad
    _, known = patch_points(depth, matrix, None, (2, 3))
    assert known[0, 0].all()
    assert not known[0, 1].any()
    pose = torch.eye(4).repeat(1, 2, 1, 1)
    pose[0, 0, 0, 3] = float("nan")
    points, known = patch_points(depth, intrinsics(views=2), pose, (2, 3))
    assert not known[0, 0].any()
    assert points.isfinite().all()


def awake(dims, **options):
    fusion = Position3D.build(Position3D.Config(**options), dims)
    with torch.no_grad():
        fusion.mlp[2].weight.normal_()
    return fusion


def test_equal_points_get_equal_embeddings(dims, inputs):
    """The embedding depends on where a patch is, not on the view or the token that shows it."""
    fusion = awake(dims)
    for name in ("depth", "intrinsics", "extrinsics"):
        value = getattr(inputs.cameras, name)
        value[:, 1] = value[:, 0]
    added = inputs.run(fusion).visual.tokens - inputs.visual.tokens
    assert torch.allclose(added[:, :6], added[:, 6:], atol=1e-4)
    assert not torch.allclose(added[:, 0], added[:, 1], atol=1e-2)


def test_cells_see_where_in_a_patch_something_is(dims, inputs):
    """Moving depth within a patch keeps its mean point, and moves the points of its cells."""
    inputs.cameras.depth[:] = 2.0
    inputs.cameras.depth[0, 1, :2, 8:10] = 1.0  # view 1, row 0, column 2 -> token 6 + 2: its first cell
    torch.manual_seed(1)
    fusion = awake(dims, cells=2, frame="camera")
    before = inputs.run(fusion).visual.tokens
    inputs.cameras.depth[0, 1, :2, 8:10] = 0.0  # one cell of four unmeasured: the patch is still known
    holed = inputs.run(fusion).visual.tokens
    assert (holed != before).any(dim=-1).nonzero().tolist() == [[0, 8]]
    inputs.cameras.depth[0, 1, :4, 8:] = 0.0
    same = (inputs.run(fusion).visual.tokens == inputs.visual.tokens).all(dim=-1)
    assert same.nonzero().tolist() == [[0, 8]]


def test_cells_are_points_of_the_finer_grid(dims, inputs):
    """Row by row: the embedding of a patch is the MLP of what its four cells have on a grid twice as fine."""
    fusion = awake(dims, cells=2, frame="world")
    added = inputs.run(fusion).visual.tokens - inputs.visual.tokens
    cameras = inputs.cameras
    points, _ = patch_points(cameras.depth, cameras.intrinsics, cameras.extrinsics, (4, 6))
    four = points[2, 1, 2:4, 2:4].reshape(4, 3)  # view 1, row 1, column 1 -> token 6 + 4
    waves = sinusoid(four, 2 * fusion.config.n_frequencies, fusion.config.shortest, fusion.config.longest)
    assert torch.allclose(added[2, 10], fusion.mlp(waves.flatten()), atol=1e-4)


def test_a_patch_without_depth_stays_as_it_is(dims, inputs):
    inputs.cameras.depth[0, 1, :4, 8:] = 0.0  # view 1, row 0, column 2 -> token 6 + 2
    same = (inputs.run(awake(dims)).visual.tokens == inputs.visual.tokens).all(dim=-1)
    assert same.nonzero().tolist() == [[0, 8]]


def test_frames(dims, inputs):
    world, camera, auto = (
        inputs.run(awake_with(dims, inputs, frame)).visual.tokens for frame in ("world", "camera", "auto")
    )
    assert torch.equal(world, auto)
    assert torch.equal(world[:, :6], camera[:, :6])  # the first camera is the world's origin
    assert not torch.allclose(world[:, 6:], camera[:, 6:], atol=1e-2)
    inputs.cameras.extrinsics = None
    alone = inputs.run(awake_with(dims, inputs, "auto")).visual.tokens
    assert torch.equal(alone, camera)


def awake_with(dims, inputs, frame):
    torch.manual_seed(1)
    return awake(dims, frame=frame)


def test_geometry_depth_replaces_the_sensor(dims, inputs):
    fusion = awake(dims, depth="geometry")
    assert fusion.needs == {"depth"}
    base = inputs.run(fusion).visual.tokens
    inputs.cameras.depth = None
    assert torch.equal(base, inputs.run(fusion).visual.tokens)
    inputs.geometry.depth = inputs.geometry.depth + 0.1
    assert not torch.equal(base, inputs.run(fusion).visual.tokens)
    inputs.geometry.depth = None
    with pytest.raises(UserError, match=r"geometry\.depth: missing.*fusion\.depth: camera"):
        inputs.run(fusion)


def test_predicted_points_need_no_calibration(dims, inputs):
    fusion = awake(dims, depth="points")
    assert fusion.needs == {"points"}
    base = inputs.run(fusion).visual.tokens
    inputs.cameras = None
    assert torch.equal(base, inputs.run(fusion).visual.tokens)
    # The same points as of a camera give what that camera's depth gives.
    depth = 1 + torch.rand(3, 2, 8, 12)
    torch.manual_seed(1)
    by_depth = awake(dims, frame="camera")
    fusion.load_state_dict(by_depth.state_dict())
    rays, _ = pinhole_rays(intrinsics(3, 2), (8, 12))
    inputs.geometry.points = (rays * depth[:, :, None]).permute(0, 1, 3, 4, 2)
    inputs.cameras = Cameras(intrinsics(3, 2), None, depth)
    assert torch.allclose(inputs.run(fusion).visual.tokens, inputs.run(by_depth).visual.tokens, atol=1e-5)
    inputs.geometry.points[0, 1, :4, 8:] = float("nan")  # view 1, row 0, column 2 -> token 6 + 2
    same = (inputs.run(fusion).visual.tokens == inputs.visual.tokens).all(dim=-1)
    assert same.nonzero().tolist() == [[0, 8]]
    inputs.geometry.points = torch.zeros(3, 2, 8, 12)
    with pytest.raises(UserError, match=r"geometry\.points: shape \[3, 2, 8, 12\] must be \[3, 2, H, W, 3\]"):
        inputs.run(fusion)
    inputs.geometry.points = None
    with pytest.raises(UserError, match=r"geometry\.points: missing.*fusion\.depth: camera"):
        inputs.run(fusion)
    with pytest.raises(ConfigError, match="frame: 'world' cannot be had with depth: points"):
        Position3D.Config(depth="points", frame="world")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": None}, r"cameras\.depth: missing.*fusion\.depth: geometry"),
        ({"intrinsics": None}, r"cameras\.intrinsics: missing"),
        ({"extrinsics": None}, r"cameras\.extrinsics: missing.*fusion\.frame: camera"),
        ({"depth": torch.ones(3, 1, 8, 12)}, r"cameras\.depth: shape \[3, 1, 8, 12\] must be \[3, 2, H, W\]"),
        ({"intrinsics": torch.eye(3)}, r"cameras\.intrinsics: shape \[3, 3\] must be \[3, 2, 3, 3\]"),
        ({"extrinsics": torch.ones(3, 2, 3, 4)}, r"cameras\.extrinsics: shape \[3, 2, 3, 4\]"),
    ],
)
def test_cameras_are_demanded(dims, inputs, changes, message):
    inputs.cameras = dataclasses.replace(inputs.cameras, **changes)
    fusion = awake(dims, frame="world")
    with pytest.raises(UserError, match=message) as error:
        inputs.run(fusion)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cameras", [None, Cameras()])
def test_no_cameras_at_all(dims, inputs, cameras):
    inputs.cameras = cameras
    with pytest.raises(UserError, match=r"cameras\.depth: missing"):
        inputs.run(awake(dims))
