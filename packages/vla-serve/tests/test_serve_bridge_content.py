"""What the bridges read and write: arrays in msgpack, and the mapping of keys to a contract."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import ConfigError, UserError
from vla_core.testing import make_spec

pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
pytest.importorskip("msgpack", reason="needs the extra vla-serve[bridge]")

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from vla_serve.bridges.arrays import pack, unpack
from vla_serve.bridges.repack import Repack, read

SPEC = make_spec().observation


def picture(value):
    return np.full((32, 32, 3), value, np.uint8)


def test_a_mapping_covers_the_contract():
    images = {"camera_0": "a", "camera_1": "b"}
    for state, words in (
        ({"s": ["position", "rotation"]}, "'gripper' of the contract is missing"),
        (
            {"s": ["position", "rotation", "gripper"], "g": ["gripper"]},
            "'gripper' of the contract is named",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            Repack(SPEC, images, state, "x")
    repack = Repack(SPEC, images, {"s": ["gripper", "position"], "r": ["rotation"]}, "x")
    views = {"a": picture(1), "b": picture(2)}
    values = {"s": [9, 1, 2, 3], "r": np.array([[4, 5, 6]])}
    observation = repack.observation(views, values, "go")
    assert observation.state.tolist() == [1, 2, 3, 4, 5, 6, 9]
    for change, words in (
        ({"a": picture(1)[:16]}, r"'a': expected uint8 RGB \[32, 32, 3\], got uint8 \[16, 32, 3\]"),
        ({"a": picture(1) / 255}, "got float64"),
        ({"a": "x"}, "'a': expected uint8 RGB"),
    ):
        with pytest.raises(UserError, match=words):
            repack.observation({**views, **change}, values, "go")
    for change, words in (({"s": "words"}, "expected a vector"), ({"s": [[1], [2, 3]]}, "ragged")):
        with pytest.raises(UserError, match=words):
            repack.observation(views, {**values, **change}, "go")
    stateless = Repack(replace(SPEC, state=()), images, {}, "x")
    assert stateless.observation(views, {}, "go").state is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xc1",
        msgpack.packb({b"__ndarray__": True, b"data": b"12", b"dtype": "|O", b"shape": [1]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [2**31, 2**31]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [-1]}),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<f8", b"data": "x"}),
        msgpack.packb({"__image__": True, "format": "tiff", "data": b""}),
        msgpack.packb({1: 2}),
    ],
)
def test_what_is_no_array_is_a_mistake(content):
    with pytest.raises(UserError):
        unpack(content)


@given(st.binary(max_size=200))
def test_bytes_are_content_or_a_mistake(data):
    with contextlib.suppress(UserError):
        unpack(data)


@pytest.mark.parametrize("text_keys", [True, False])
def test_arrays_come_back_as_they_were(text_keys):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 3), np.uint8), "c": 1}
    back = unpack(pack(values, text_keys))
    for name in "ab":
        np.testing.assert_array_equal(back[name], values[name])
        assert back[name].dtype == values[name].dtype
    with pytest.raises(TypeError, match="object cannot be sent"):
        pack(object())


def test_a_repack_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    assert read(None).openpi is None
