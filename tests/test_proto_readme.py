"""proto/README.md: its calls, fields and values are those of the API."""

from __future__ import annotations

import re
from pathlib import Path

from vla_serve.v1 import policy_pb2, types_pb2

PROTO = Path(__file__).resolve().parent.parent / "proto"
TEXT = (PROTO / "README.md").read_text()
JS = re.findall(r"```js\n(.*?)```", TEXT, re.S)[0]
SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].methods_by_name


def test_every_file_is_listed() -> None:
    assert set(re.findall(r"\((vla_serve/v1/\w+\.proto)\)", TEXT)) == {
        str(path.relative_to(PROTO)) for path in PROTO.glob("vla_serve/v1/*.proto")
    }


def test_calls_exist_and_are_explained() -> None:
    called = set(re.findall(r'call\("(\w+)"', JS)) | set(re.findall(r"client\.([A-Z]\w+)\(", JS))
    assert called >= {"OpenSession", "HoldSession", "ResetSession", "Predict", "CloseSession"}
    assert called <= set(SERVICE)
    steps = TEXT[TEXT.index("## The calls of a client") : TEXT.index("## Example")]
    assert called <= set(re.findall(r"`(\w+)`", steps))


def test_fields_and_values_exist() -> None:
    for name, fields in re.findall(r'call\("(\w+)", \{([^{}]*)', JS):
        given = {field.partition(":")[0].strip() for field in fields.split(",")} - {""}
        assert given <= set(SERVICE[name].input_type.fields_by_name), name
    observation = types_pb2.Observation.DESCRIPTOR.fields_by_name
    assert {"images", "state"} <= set(observation)
    for value in re.findall(r'"((?:DTYPE|IMAGE_ENCODING)_\w+)"', JS):
        assert hasattr(types_pb2, value), value
