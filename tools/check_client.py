"""The torch-free client as its users get it: wheels without extras, an old Python, old and new protobuf.

    uv run tools/check_client.py [DIST]      DIST: a directory with the wheels; without it they are built

A toy server runs on this interpreter's environment; each client runs in an environment of its own
and must get an answer from it with every image encoding.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vla_serve import PolicyServer
from vla_serve.testing import ToyPolicy

ROOT = Path(__file__).resolve().parent.parent
OLD_PYTHON = "3.10"
# Both ends of the range: what was current when the stubs' generator was, and whatever is newest.
RUNTIMES = {
    "old": ["protobuf==5.29.*", "grpcio==1.66.2"],
    "new": ["protobuf", "grpcio"],
}

CLIENT = """
import asyncio, importlib.metadata as metadata, importlib.util, sys
import numpy as np
assert importlib.util.find_spec("torch") is None, "torch came with the client"
import vla_serve
from vla_core.types import Observation
image = np.zeros((32, 32, 3), np.uint8)
image[:, 20:23] = 255
for encoding in ("raw", "png", "jpeg"):
    with vla_serve.PolicyClient(sys.argv[1], embodiment="toy", encoding=encoding) as client:
        client.reset("go left")
        chunk = client.predict(Observation({"top": image}, "", np.zeros(1)), seed=1)
        assert chunk.actions.shape == (4, 1) and (chunk.actions == -1).all(), chunk
        try:
            client.predict(Observation({"top": image[:8]}, "go left", np.zeros(1)))
        except vla_serve.PolicyClientError as error:
            assert list(error.fields) == ["observation.images[top]"], error.fields
        else:
            raise AssertionError("a wrong image was not refused")
with (
    vla_serve.PolicyClient(sys.argv[1], real_time_chunking=True) as client,
    vla_serve.ControlLoop(client, execute_steps=2, delay_steps=2) as loop,
):
    actions = [loop.act(Observation({"top": image}, "go left", np.zeros(1))) for _ in range(7)]
    assert (np.array(actions) == -1).all() and len(loop.stats.round_trips_ms) == 3, actions
async def twin():
    async with vla_serve.AsyncPolicyClient(sys.argv[1]) as client:
        return await client.predict(Observation({"top": image}, "go left", np.zeros(1)), seed=1)
assert (asyncio.run(twin()).actions == -1).all()
from vla_serve import server_cli
assert server_cli.main(["probe", "--address", sys.argv[1], "--requests", "2"]) == 0
try:
    vla_serve.PolicyClient(sys.argv[1], embodiment="other").open()
except vla_serve.PolicyClientError as error:
    assert list(error.fields) == ["config.embodiment"], error.fields
assert "torch" not in sys.modules
versions = [f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf", "numpy")]
print(f"python {sys.version.split()[0]}, {', '.join(versions)}")
"""


def run(*command: object) -> str:
    """Output of a command; its own words and exit code 1 when it fails."""
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        sys.exit(f"check_client: failed: {' '.join(str(c) for c in command[:4])}")
    return done.stdout.strip()


def find_python(uv: str) -> str:
    """The old Python where there is one; nothing is downloaded."""
    for candidate in [
        OLD_PYTHON,
        *sorted(
            Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.10.*/bin/python")
        ),
    ]:
        found = subprocess.run(
            [uv, "python", "find", "--no-project", "--no-python-downloads", str(candidate)],
            check=False,
            capture_output=True,
            text=True,
        )
        if found.returncode == 0:
            return found.stdout.strip()
    print(f"check_client: no Python {OLD_PYTHON} here; checking with {sys.version.split()[0]} instead")
    return sys.executable


def wheel(dist: Path, name: str) -> Path:
    """The newest wheel of a package."""
    found = sorted(dist.glob(f"{name}-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"check_client: no wheel of {name} in {dist}; build it with: uv build --package {name}")
    return found[-1]


def main() -> int:
    """Check both ends; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dist", type=Path, nargs="?", help="directory with the wheels")
    dist = parser.parse_args().dist
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("check_client: 'uv' is not on PATH; install it with: pip install uv")
    with tempfile.TemporaryDirectory() as directory, PolicyServer(ToyPolicy()) as server:
        scratch = Path(directory)
        if dist is None:
            dist = scratch / "dist"
            for package in ("vla-core", "vla-serve"):
                run(uv, "build", "--quiet", "--wheel", "--out-dir", dist, ROOT / "packages" / package)
        wheels = [wheel(dist, name) for name in ("vla_core", "vla_serve")]
        base = find_python(uv)
        for name, runtime in RUNTIMES.items():
            environment = scratch / name
            run(uv, "venv", "--quiet", "--no-project", "--python", base, environment)
            python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
            # Elsewhere: the workspace pins versions for its own Python, and uv reads them from where it runs.
            wheels = [path.resolve() for path in wheels]
            run(
                uv, "--directory", scratch, "pip", "install", "--quiet", "--python", python, *wheels, *runtime
            )
            # Isolated and elsewhere, so that the sources cannot stand in for the wheels.
            script = scratch / "client.py"
            script.write_text(CLIENT)
            said = run(python, "-I", script, server.address)
            print(f"check_client: {name}: {said.splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
