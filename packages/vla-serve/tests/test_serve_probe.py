"""``vla-serve probe`` against a server: what it prints, and what it refuses to call right."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.testing import make_spec
from vla_core.types import ActionChunk
from vla_serve import PolicyServer
from vla_serve.contract_text import contract_lines
from vla_serve.probing.made_up import made_up, variants
from vla_serve.probing.probe import load
from vla_serve.server_cli import main
from vla_serve.testing import TimedPolicy, ToyPolicy


def probe(server, *words):
    return main(["probe", "--address", server.address, *words])


def test_it_says_contract_latency_and_that_equal_requests_are_answered_alike(capsys):
    policy = TimedPolicy(make_spec(), run_s=0.01)
    with PolicyServer(policy) as server:
        assert probe(server, "--requests", "5", "--seed", "3") == 0
    said = capsys.readouterr().out
    for words in (
        "policy 'default' (Timed), embodiments default",
        "  camera  camera_1: 32 x 32 uint8 RGB",
        "  state   rotation: dims 3-5, rad, absolute, axis_angle",
        "  action  gripper: dims 6, 1, absolute, open_positive",
        "  chunk   4 steps of 7 dims at 10 Hz: 0.4 s",
        "(real-time chunking): no",
        "does not depend on: camera camera_0, camera camera_1, instruction",
        "answered alike, bit by bit, in one session and in two",
        "rows of a batch: 1.00 on average, 1 at most",
    ):
        assert words in said
    p50 = {name: float(value) for name, value in re.findall(r"^([a-z ]+?) +(\d+\.\d+) +\d", said, re.M)}
    assert p50["model"] >= 10
    assert p50["round trip"] >= p50["server"] >= p50["model"]
    assert abs(p50["round trip"] - p50["server"] - p50["beyond server"]) < p50["round trip"]


def test_several_clients_share_batches(capsys):
    with PolicyServer(TimedPolicy(make_spec(), run_s=0.02)) as server:
        assert probe(server, "--requests", "6", "--clients", "4", "--encoding", "png") == 0
    said = capsys.readouterr().out
    assert "4 client(s), 6 requests each, images png" in said
    assert int(re.search(r"rows of a batch: .*, (\d) at most", said)[1]) >= 2


class Drawing:
    """A policy that draws its own noise: what a seed is for."""

    framework, specs = "Drawing", {"default": make_spec()}
    _rng = np.random.default_rng(0)

    def act(self, observations, seeds, steps=None):
        spec = self.specs["default"].action
        return [
            ActionChunk(self._rng.normal(size=(spec.horizon, spec.dim)).astype(np.float32) * 1e-3, spec)
            for _ in observations
        ]


def test_a_policy_that_draws_its_own_noise_is_found_out(capsys):
    with PolicyServer(Drawing()) as server:
        assert probe(server, "--requests", "2") == 1
        assert re.search(r"equal requests: ANSWERED \S+ APART", capsys.readouterr().out)
        assert probe(server, "--requests", "2", "--tolerance", "0.1") == 0
        assert "within --tolerance 0.1" in capsys.readouterr().out


def test_mistakes_are_one_line(capsys, tmp_path):
    with PolicyServer(ToyPolicy()) as server:
        assert probe(server, "--embodiment", "toi") == 2
        assert "config.embodiment: the policy has no 'toi' (did you mean 'toy'?)" in capsys.readouterr().err
        assert probe(server, "--requests", "0") == 2
        assert "--requests: must be at least 1" in capsys.readouterr().err
        assert probe(server, "--tolerance", "nan") == 2
        assert "--tolerance: must be finite and not negative" in capsys.readouterr().err
        assert probe(server, "--wait_s", "-1") == 2
        assert "wait_s: must be positive" in capsys.readouterr().err
        assert probe(server, "--token_file", str(tmp_path / "none")) == 2
        assert "cannot be read" in capsys.readouterr().err
        assert probe(server, "--timeout_s", "inf") == 2
        assert "timeout_s: must be positive and finite" in capsys.readouterr().err
        address = server.address
    assert main(["probe", "--address", address]) == 1
    assert "is vla-serve running there?" in capsys.readouterr().err
    assert main(["probe", "--address", address, "--wait_s", "0.1"]) == 1
    assert "not ready after 0.1 s" in capsys.readouterr().err


def test_an_interruption_ends_the_clients_too(monkeypatch):
    class Interrupted(ThreadPoolExecutor):
        def map(self, function, items):
            for item in items:
                self.submit(function, item)
            raise KeyboardInterrupt

    monkeypatch.setattr("vla_serve.probing.probe.ThreadPoolExecutor", Interrupted)
    with PolicyServer(TimedPolicy(make_spec())) as server, pytest.raises(KeyboardInterrupt):
        load(server.address, {}, 2, 10**9, 0, None)


def test_the_program_needs_no_torch():
    with PolicyServer(ToyPolicy()) as server:
        script = (
            "import sys; from vla_serve.server_cli import main; "
            f"code = main(['probe', '--address', '{server.address}', '--requests', '1']); "
            "assert 'torch' not in sys.modules; sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "contract of embodiment 'toy'" in done.stdout


def test_rotations_that_are_made_up_are_rotations():
    spec = RobotSpec(
        ObservationSpec(
            (CameraSpec("a", 4, 6),),
            (
                GroupSpec("hands", 8, "1", rotation="quaternion_xyzw"),
                GroupSpec("head", 6, "1", rotation="rotation_6d"),
            ),
        ),
        ActionSpec((GroupSpec("v", 1, "m"),), 2, 5.0),
    )
    first = made_up(spec.observation, 0)
    assert first.images["a"].shape == (4, 6, 3)
    np.testing.assert_allclose(np.linalg.norm(first.state[:8].reshape(2, 4), axis=1), 1, atol=0.05)
    changed = variants(spec.observation, 0)
    assert list(changed) == ["camera a", "state", "instruction"]
    assert "  camera  a: 4 x 6 uint8 RGB" in list(contract_lines(spec, None))


@pytest.mark.parametrize("spec", [ObservationSpec((CameraSpec("a", 4, 6),))])
def test_a_contract_without_state(spec):
    assert made_up(spec, 0).state is None
    assert "state" not in variants(spec, 0)
