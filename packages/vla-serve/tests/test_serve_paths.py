"""Where files lie on the server is none of a client's business; names of the contract are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyClientError, PolicyServer
from vla_serve.messages.status import without_paths
from vla_serve.testing import TimedPolicy


@pytest.mark.parametrize(
    "path",
    [
        "/srv/models/a.yaml",
        "/data",
        "~/ckpt/a.safetensors",
        "./runs/x",
        "../x.yaml",
        "file:///etc/a",
        "'/srv/my models/a b'",
    ],
)
def test_no_path_of_the_server_reaches_a_client(path):
    said = "state: 3 m/s, see (a file of the server): broken"
    assert without_paths(f"state: 3 m/s, see {path}: broken") == said


@pytest.mark.parametrize("text", ["3 /s and 1 / 2", "rad/s^2, and/or", "observation/image", "http://a.b/c"])
def test_what_is_no_path_stays(text):
    assert without_paths(text) == text


@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_names_of_the_contract_stay_though_they_look_like_paths(quote):
    names = {"/top", "/camera/wrist color", "/arm/joints"} if quote else {"/top", "/arm/joints"}
    for name in names:
        text = f"images[{quote}{name}{quote}]: missing; see {quote}{name}{quote}."
        assert without_paths(text, names) == text
        assert name not in without_paths(text)
    hidden = without_paths(f"{quote}/top{quote}, read from {quote}/top/secret{quote} and /topmost", names)
    assert hidden == f"{quote}/top{quote}, read from (a file of the server) and (a file of the server)"


def test_a_policy_that_names_a_camera_like_a_path_is_understood():
    spec = make_spec(1)
    cameras = (replace(spec.observation.cameras[0], name="/top"),)
    spec = replace(spec, observation=replace(spec.observation, cameras=cameras))

    class Picky(TimedPolicy):
        def prepare(self, rows):
            if not picky:
                return super().prepare(rows)
            raise UserError("no depth of '/top', /top is dark; see /srv/models/a.yaml")

    picky, seen = [], make_observation(spec)
    with (
        PolicyServer(Picky(spec)) as server,
        PolicyClient(server.address) as client,
    ):
        picky.append(True)
        with pytest.raises(PolicyClientError, match=r"no depth of '/top', /top is dark; see \(a file"):
            client.predict(seen)
