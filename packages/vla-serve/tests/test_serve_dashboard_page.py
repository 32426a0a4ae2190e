"""The page in headless Chromium, of the program ``vla-serve`` and real requests."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage
from vla_core.testing import make_observation, make_spec
from vla_core.testing.ports import reserved_port
from vla_serve import PolicyClient, PolicyClientError

pytest.importorskip("nicegui", reason="needs the extra vla-serve[dashboard]")
pytest.importorskip("torch", reason="needs the extra vla-serve[server]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

SPEC = make_spec(2)
COLOURS = [(200, 40, 90), (20, 160, 230)]

# A process of its own knows only parts found by entry point; these fakes are not.
SERVE = """
import sys
import torch
torch.set_num_threads(1)
from vla_core.testing import register_fakes
from vla_serve.server_cli import main
with register_fakes():
    sys.exit(main(sys.argv[1:]))
"""


def browser(url: str) -> str:
    """What a browser has made of the page."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom")
    command = [CHROMIUM, *flags, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def decoded(url: str) -> np.ndarray:
    return np.asarray(PILImage.open(io.BytesIO(base64.b64decode(url))))


@pytest.fixture
def port():
    with reserved_port() as number:
        yield number


@pytest.fixture
def served(tmp_path, port):
    """Address and dashboard's URL of ``vla-serve``, which ends in order afterwards."""
    from vla_core.testing import tiny_policy

    policy, path = tiny_policy(SPEC).eval(), tmp_path / "checkpoints" / "steps_3"
    policy.save(path, step=3, config={"framework": policy.config})
    port_file = tmp_path / "port"
    words = ("--ckpt_path", path, "--port", 0, "--port_file", port_file, "--threads", 1, "--dashboard", port)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        end = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        said, url = process.stdout.readline().split()
        assert said == "dashboard"
        yield f"127.0.0.1:{port_file.read_text().strip()}", url
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    assert f"dashboard at http://127.0.0.1:{port}" in log
    assert "token" not in log
    assert "Traceback" not in log
    assert "the dashboard ended" not in log


def test_a_browser_sees_what_the_server_does(served):
    address, url = served
    images = {
        camera.name: np.full((camera.height, camera.width, 3), colour, np.uint8)
        for camera, colour in zip(SPEC.observation.cameras, COLOURS, strict=True)
    }
    with PolicyClient(address) as client:
        for step in range(20):
            seen = replace(make_observation(SPEC, step), images=images)
            chunk = client.predict(seen, seed=3, step=step)
        with pytest.raises(PolicyClientError, match="step"):
            client.predict(make_observation(SPEC), step=0)
        page = browser(url)
        session = client._session
    assert session[:8] in page
    assert session[:9] not in page
    assert seen.instruction in page
    pictures = [
        decoded(url) for url in dict.fromkeys(re.findall(r'<img[^>]*src="data:[^,"]*,([^"]+)"', page))
    ]
    for colour, picture in zip(COLOURS, pictures, strict=True):
        assert np.abs(picture - np.array(colour, float)).max() < 4
    assert page.count("<canvas") == 4 + len(SPEC.action.groups)
    for group in (*SPEC.observation.state, *SPEC.action.groups):
        assert f"{group.name} [{group.unit}]" in page
    text = re.sub(r"<[^>]*>", " ", page)
    assert re.search(rf"x\s+{seen.state[0]:.4g}\s+y\s+{seen.state[1]:.4g}\s+z\s", text)
    assert re.search(r"sessions\s+1 / 64", text)
    assert re.search(r"refused\s+1\s", text)
    assert re.search(r"p50\s+[\d.]+ ms", text)
    assert f"{SPEC.action.horizon} steps of {SPEC.action.dim} dims" in text
    assert chunk.request_id in text
    assert chunk.revision.weights_digest[:12] in text
