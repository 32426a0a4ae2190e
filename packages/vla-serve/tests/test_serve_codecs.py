from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.types import Observation
from vla_serve.messages.codec import FieldError, decode_image, decode_tensor, encode_image, encode_tensor
from vla_serve.messages.observation_codec import decode_observation, encode_observation
from vla_serve.messages.spec_codec import decode_spec, encode_spec
from vla_serve.messages.wire import serialise
from vla_serve.v1 import policy_pb2, specs_pb2, types_pb2

DTYPES = ["?", "u1", "<i4", ">i4", "<i8", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]
names = st.from_regex(r"[a-zé_]{1,6}", fullmatch=True)


def through_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_tensors_survive(data):
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = data.draw(hnp.arrays(dtype, shape))
    if array.ndim and data.draw(st.booleans()):
        array = array.T[..., ::-1] if array.ndim > 1 else array[::-1]
    back = decode_tensor(through_the_wire(encode_tensor(array)))
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)
    # NaN payloads and signs too
    assert back.tobytes() == array.astype(back.dtype).tobytes()


def test_bytes_are_little_endian_whatever_the_input():
    for order in "<>":
        assert encode_tensor(np.array([1], f"{order}i4")).data == b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([1j]), np.array([1], np.uint16), np.array([None])]
)
def test_other_dtypes_are_refused_when_encoding(array):
    with pytest.raises(FieldError, match=r"state: dtype .* cannot be sent"):
        encode_tensor(array, "state")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": 0}, "unknown dtype 0"),
        ({"dtype": 99}, "unknown dtype 99"),
        ({"shape": [3]}, "needs 12 bytes, got 8"),
        ({"shape": [-2]}, "all >= 0"),
        ({"shape": [1] * 9}, "at most 8 axes"),
        ({"shape": [2**62, 2**62]}, "bytes, got 8"),
        ({"shape": [2**62, 2**62, 0], "data": b""}, "larger than any array"),
        ({"dtype": types_pb2.DTYPE_BOOL, "shape": [8], "data": b"\x02" * 8}, "must be 0 or 1"),
    ],
)
def test_bad_tensors_are_refused(change, words):
    fields = {"dtype": types_pb2.DTYPE_FLOAT32, "shape": [2], "data": b"\0" * 8} | change
    with pytest.raises(FieldError, match=words) as caught:
        decode_tensor(types_pb2.Tensor(**fields), "some.field")
    assert caught.value.field == "some.field"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_images_survive_lossless_encodings(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    image = data.draw(hnp.arrays(np.uint8, (height, width, 3)))
    view = data.draw(
        st.sampled_from([image, image[::-1], image[:, ::-1], image[..., ::-1], np.asfortranarray(image)])
    )
    for encoding in ("raw", "png"):
        back = decode_image(through_the_wire(encode_image(view, encoding)), height, width)
        np.testing.assert_array_equal(back, view)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_raw_images_join_a_request(data):
    sizes = data.draw(st.dictionaries(names, st.tuples(st.integers(1, 90), st.integers(1, 9)), max_size=3))
    images = {name: data.draw(hnp.arrays(np.uint8, (*size, 3))) for name, size in sizes.items()}
    views = {name: data.draw(st.sampled_from([i, i[::-1], i[:, ::-1]])) for name, i in images.items()}
    request = policy_pb2.PredictRequest(session_id="abc", seed=2**62, step=300)
    request.observation.instruction = "go"
    whole = type(request).FromString(request.SerializeToString())
    for name, view in views.items():
        encode_image(view, "raw", into=whole.observation.images[name])
    assert type(request).FromString(serialise(request, views)) == whole


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2, 3)),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_other_images_are_refused_when_encoding(image):
    with pytest.raises(FieldError, match="expected uint8"):
        encode_image(image)


enum = {
    "representation": ["absolute", "delta", "relative"],
    "gripper": ["none", "open_positive", "close_positive"],
}
rotations = ["none", "euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"]
groups = st.lists(
    st.builds(
        GroupSpec,
        name=names,
        dim=st.integers(1, 9),
        unit=names,
        representation=st.sampled_from(enum["representation"]),
        rotation=st.sampled_from(rotations),
        gripper=st.sampled_from(enum["gripper"]),
    ),
    max_size=3,
    unique_by=lambda g: g.name,
).map(tuple)
cameras = st.lists(
    st.builds(CameraSpec, names, st.integers(1, 6), st.integers(1, 6)), max_size=3, unique_by=lambda c: c.name
).map(tuple)
specs = st.builds(
    RobotSpec,
    observation=st.builds(ObservationSpec, cameras, groups),
    action=st.builds(ActionSpec, groups, st.integers(1, 64), st.floats(0.1, 1000)),
    embodiment=names,
)


@settings(max_examples=60, deadline=None)
@given(specs)
def test_specs_survive(spec):
    assert decode_spec(through_the_wire(encode_spec(spec))) == spec


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_observations_survive(data):
    spec = data.draw(specs)
    finite = st.floats(-1e6, 1e6, width=32)

    def maybe(shape_of):
        if not spec.observation.cameras or not data.draw(st.booleans()):
            return None
        return {
            c.name: data.draw(hnp.arrays(np.float32, shape_of(c), elements=finite))
            for c in spec.observation.cameras
        }

    dim = spec.observation.state_dim
    observation = Observation(
        images={
            c.name: data.draw(hnp.arrays(np.uint8, (c.height, c.width, 3))) for c in spec.observation.cameras
        },
        instruction=data.draw(st.text(min_size=1, max_size=20).filter(str.strip)),
        state=data.draw(hnp.arrays(np.float32, dim, elements=finite)) if dim else None,
        depth=maybe(lambda c: (c.height, c.width)),
        intrinsics=maybe(lambda c: (3, 3)),
        extrinsics=maybe(lambda c: (4, 4)),
        embodiment=spec.embodiment,
    )
    message = through_the_wire(encode_observation(observation, spec.observation))
    back = decode_observation(message, spec.observation, spec.embodiment)
    assert (back.instruction, back.embodiment) == (observation.instruction, observation.embodiment)
    assert (back.state is None) == (observation.state is None)
    if back.state is not None:
        np.testing.assert_array_equal(back.state, observation.state)
    for kind in ("images", "depth", "intrinsics", "extrinsics"):
        got, sent = getattr(back, kind), getattr(observation, kind)
        assert (got is None) == (sent is None)
        for name in sent or ():
            np.testing.assert_array_equal(got[name], sent[name])


def test_state_of_any_numeric_dtype_is_sent_as_float32():
    spec = ObservationSpec((), (GroupSpec("q", 2, "rad"),))
    for state in (np.array([1, 2]), np.array([1.0, 2.0]), np.array([1, 2], ">f4"), [1, 2]):
        message = encode_observation(Observation({}, "go", state), spec)
        assert message.state.dtype == types_pb2.DTYPE_FLOAT32
        np.testing.assert_array_equal(decode_tensor(message.state), np.float32([1, 2]))
    with pytest.raises(FieldError, match=r"observation\.state: expected numbers"):
        encode_observation(Observation({}, "go", np.array(["1", "2"])), spec)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.action.groups[0].ClearField("representation"), "representation"),
        (lambda m: setattr(m.action.groups[0], "rotation", 77), "rotation"),
        (lambda m: setattr(m.action, "horizon", 0), "horizon"),
        (lambda m: setattr(m.action.groups[0], "dim", 0), "dim"),
        (lambda m: m.action.groups.append(m.action.groups[0]), "two entries named"),
        (lambda m: setattr(m.observation.cameras[0], "height", 0), "height"),
        (lambda m: setattr(m.observation.cameras[0], "name", ""), "without a name"),
    ],
)
def test_bad_specs_are_refused(spec, change, field):
    message = encode_spec(spec)
    change(message)
    with pytest.raises(FieldError, match=field):
        decode_spec(message)


def test_unknown_literals_are_refused_when_encoding(spec):
    group = replace(spec.action.groups[0], rotation="no_such")
    with pytest.raises(FieldError, match=r"action\.groups\[position\]\.rotation: unknown 'no_such'"):
        encode_spec(replace(spec, action=replace(spec.action, groups=(group,))))


def test_room_is_left_in_the_messages():
    for message in (types_pb2.Observation, policy_pb2.PredictRequest, policy_pb2.PredictResponse):
        proto = descriptor_pb2.DescriptorProto()
        message.DESCRIPTOR.CopyToProto(proto)
        assert any(kept.start <= 8 and kept.end > 15 for kept in proto.reserved_range), proto.name
    assert specs_pb2.DESCRIPTOR.package == "vla_serve.v1"
