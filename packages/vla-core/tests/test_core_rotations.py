from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vla_core import rotations

KINDS = list(rotations.DIMS)
PAIRS = list(itertools.product(KINDS, KINDS))
UNIT = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 1e-2)
# Everyday angles, and those where parametrisations are delicate: none, tiny, just below and at pi.
ANGLES = st.one_of(
    st.floats(0, np.pi),
    st.sampled_from([0.0, 1e-12, 1e-9, 9e-7, 1.1e-6, 1e-4, np.pi - 1e-4, np.pi - 1e-9, np.pi]),
)
QUARTER = st.sampled_from([-np.pi / 2, np.pi / 2])
NEAR = st.sampled_from([0.0, 1e-12, 1e-9, 1e-7, 5e-7, 2e-5, 4.4e-5, 1e-3, -1e-7, -4.4e-5])
TURN = st.floats(-np.pi, np.pi)


def _matrix(axis, angle):
    axis = np.asarray(axis) / np.linalg.norm(axis)
    return rotations.to_matrix(axis * angle, "axis_angle")


def _is_rotation(m):
    np.testing.assert_allclose(m @ np.swapaxes(m, -1, -2), np.broadcast_to(np.eye(3), m.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(m), 1.0, atol=1e-9)


def _same_through(matrix, old, new):
    values = rotations.from_matrix(matrix, old)
    assert values.shape == (*matrix.shape[:-2], rotations.DIMS[old])
    there = rotations.convert(values, old, new)
    back = rotations.convert(there, new, old)
    for kind, v in ((old, values), (new, there), (old, back)):
        got = rotations.to_matrix(v, kind)
        _is_rotation(got)
        np.testing.assert_allclose(got, matrix, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), PAIRS)
@given(axis=UNIT, angle=ANGLES)
def test_all_pairs_keep_the_rotation(old, new, axis, angle):
    _same_through(_matrix(axis, angle), old, new)


@pytest.mark.parametrize("new", KINDS)
@given(x=TURN, quarter=QUARTER, near=NEAR, z=TURN)
def test_gimbal_lock(new, x, quarter, near, z):
    matrix = rotations.to_matrix(np.array([x, quarter + near, z]), "euler_xyz")
    _is_rotation(matrix)
    _same_through(matrix, "euler_xyz", new)


@given(x=TURN, y=st.floats(-1.5, 1.5), z=TURN)
def test_euler_angles_are_intrinsic_xyz(x, y, z):
    c, s = np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, c(x), -s(x)], [0, s(x), c(x)]])
    ry = np.array([[c(y), 0, s(y)], [0, 1, 0], [-s(y), 0, c(y)]])
    rz = np.array([[c(z), -s(z), 0], [s(z), c(z), 0], [0, 0, 1]])
    angles = np.array([x, y, z])
    np.testing.assert_allclose(rotations.to_matrix(angles, "euler_xyz"), rx @ ry @ rz, atol=1e-12)
    again = rotations.from_matrix(rx @ ry @ rz, "euler_xyz")
    np.testing.assert_allclose(np.cos(again - angles), 1.0, atol=1e-9)


@given(axis=UNIT, angle=ANGLES)
def test_canonical_forms(axis, angle):
    matrix = _matrix(axis, angle)
    q = rotations.from_matrix(matrix, "quaternion_xyzw")
    assert q[3] >= 0
    np.testing.assert_allclose(np.linalg.norm(q), 1.0, atol=1e-12)
    assert np.linalg.norm(rotations.from_matrix(matrix, "axis_angle")) <= np.pi + 1e-9
    np.testing.assert_allclose(rotations.from_matrix(matrix, "rotation_6d"), matrix[:, :2].T.ravel())


def test_quaternions_and_6d_of_any_length_mean_the_direction():
    q = np.array([0.0, 0.0, 3.0, 3.0])
    np.testing.assert_allclose(
        rotations.to_matrix(q, "quaternion_xyzw"), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12
    )
    skew = np.array([2.0, 0, 0, 5.0, 0.1, 0])
    np.testing.assert_allclose(rotations.to_matrix(skew, "rotation_6d"), np.eye(3), atol=1e-12)


def test_batches_and_float32():
    rng = np.random.default_rng(0)
    v = rng.uniform(-1, 1, (2, 5, 3)).astype(np.float32)
    six = rotations.convert(v, "axis_angle", "rotation_6d")
    assert six.shape == (2, 5, 6)
    np.testing.assert_allclose(rotations.convert(six, "rotation_6d", "axis_angle"), v, atol=1e-6)
    assert rotations.convert(v[:, :0], "axis_angle", "euler_xyz").shape == (2, 0, 3)
    one = [rotations.convert(r, "axis_angle", "euler_xyz") for r in v.reshape(-1, 3)]
    np.testing.assert_array_equal(rotations.convert(v, "axis_angle", "euler_xyz").reshape(-1, 3), one)


@pytest.mark.parametrize("kind", ["quaternion_xyzw", "rotation_6d"])
def test_zeros_have_no_direction(kind):
    with pytest.raises(ValueError, match="zero-length"):
        rotations.to_matrix(np.zeros(rotations.DIMS[kind]), kind)
