"""`vla-serve bridge` as the published clients of other systems see it, each in an environment of its own.

    uv run tools/check_bridges.py

A toy server and a bridge to it run on this interpreter's environment. openpi-client asks it as a robot's
program does; vla-eval runs an evaluation of a toy benchmark, whose every episode must succeed. StarVLA
publishes no package: its client's bytes are in packages/vla-serve/tests/test_serve_bridges.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_serve import PolicyServer
from vla_serve.testing import ToyPolicy

# openpi-client imports typing_extensions and does not say so.
OPENPI_CLIENT, VLA_EVAL = ("openpi-client==0.1.2", "typing_extensions"), ("vla-eval==0.8.0",)
TOKEN = "bridges-check"
REPACK = """
openpi:
  images: {top: observation/image}
  state: {observation/height: [height]}
vla_eval:
  images: {top: agentview}
  observation_params: {send_state: true}
  execute_steps: 2
"""

OPENPI = """
import sys
import numpy as np
import websockets.exceptions
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

url, token = sys.argv[1:]
image = np.zeros((32, 32, 3), np.uint8)
image[:, 20:23] = 255
seen = {"observation/image": image, "observation/height": np.zeros(1), "prompt": "go left"}
policy = WebsocketClientPolicy(url, api_key=token)
metadata = policy.get_server_metadata()
assert (metadata["action_horizon"], metadata["action_dim"]) == (4, 1), metadata
first, second = policy.infer(seen), policy.infer(seen)
assert first["actions"].shape == (4, 1) and (first["actions"] == -1).all(), first
assert set(first["server_timing"]) == {"infer_ms"}, first
assert set(second["server_timing"]) == {"infer_ms", "prev_total_ms"}, second
broker = ActionChunkBroker(policy, action_horizon=4)
for prompt, speed in (("go left", -1), ("go right", 1)):
    steps = [broker.infer({**seen, "prompt": prompt})["actions"] for _ in range(4)]
    assert (np.array(steps) == [[speed]] * 4).all(), steps
try:
    policy.infer({"observation/image": image, "prompt": "go left"})
except RuntimeError as error:
    assert "'observation/height' is missing" in str(error), error
else:
    raise AssertionError("an observation without a state was not refused")
try:
    WebsocketClientPolicy(url, api_key="another")
except websockets.exceptions.InvalidStatus as error:
    assert error.response.status_code == 401, error
else:
    raise AssertionError("a wrong token was not refused")
"""

BENCHMARK = """
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult


class Toy(StepBenchmark):
    \"\"\"A bright square on a line, to be moved beyond 0.8 m on one side.\"\"\"

    def __init__(self, send_state=False):
        super().__init__()
        self.send_state = send_state

    def get_metadata(self):
        return {"max_steps": 30}

    def get_tasks(self):
        return [{"name": side, "side": side} for side in ("left", "right")]

    def reset(self, task):
        self.position = 0.3
        return None

    def step(self, action):
        (speed,) = np.asarray(action["actions"])
        self.position = float(np.clip(self.position + speed / 10, -1, 1))
        there = {"left": self.position < -0.8, "right": self.position > 0.8}[self._task["side"]]
        return StepResult(obs=None, reward=float(there), done=there, info={})

    def make_obs(self, raw_obs, task):
        image = np.zeros((32, 32, 3), np.uint8)
        column = int((self.position + 1) / 2 * 31)
        image[:, max(0, column - 1) : column + 2] = 255
        seen = {"images": {"agentview": image}, "task_description": f"go {task['side']}"}
        return {**seen, "states": np.zeros(1, np.float32)} if self.send_state else seen

    def get_step_result(self, step_result):
        return {"success": step_result.done}
"""


def run(*command: object, cwd: Path) -> str:
    """Output of a command; its own words and exit code 1 when it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(c) for c in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        sys.exit(f"check_bridges: failed: {' '.join(words[:4])}")
    return done.stdout


@contextmanager
def bridge(address: str, scratch: Path) -> Iterator[dict[str, str]]:
    """Protocol -> URL of two bridges to the server, openpi's with a token."""
    (scratch / "repack.yaml").write_text(REPACK)
    (scratch / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "vla_serve.server_cli", "bridge", "--address", address]
    command += ["--repack", str(scratch / "repack.yaml")]
    options = (
        ["--openpi_port", "0", "--listen_token_file", str(scratch / "token")],
        ["--vla_eval_port", "0"],
    )
    running = [subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) for words in options]
    try:
        lines = [process.stdout.readline() if process.stdout else "" for process in running]
        if not all(lines):
            sys.exit("check_bridges: the bridge did not start")
        yield dict(line.split() for line in lines)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in running]
    if any(codes):
        sys.exit(f"check_bridges: the bridges ended with {codes}")


def environment(uv: str, scratch: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of a new environment with some packages."""
    path = scratch / packages[0].partition("=")[0]
    run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, path, cwd=scratch)
    python = path / "bin" / "python"
    # From elsewhere: the workspace pins versions that openpi-client does not take.
    run(uv, "pip", "install", "--quiet", "--python", python, *packages, cwd=scratch)
    return python


def evaluate(python: Path, url: str, scratch: Path) -> None:
    """An evaluation by vla-eval's own program: two tasks, two episodes each."""
    (scratch / "toy_benchmark.py").write_text(BENCHMARK)
    entry = {"benchmark": "toy_benchmark:Toy", "episodes_per_task": 2, "max_steps": 30}
    config = {"server": {"url": url}, "output_dir": "results", "benchmarks": [entry]}
    (scratch / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    words = ("-m", "vla_eval.cli.main", "run", "--config", "config.yaml", "--no-docker")
    said = run(python, *words, cwd=scratch)
    results = [json.loads(path.read_text()) for path in (scratch / "results").rglob("*.json")]
    episodes = [e for result in results for task in result["tasks"] for e in task["episodes"]]
    if [e["metrics"] for e in episodes] != [{"success": True}] * 4:
        print(said, file=sys.stderr)
        sys.exit("check_bridges: vla-eval's episodes did not all succeed")


def main() -> int:
    """Check both; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("check_bridges: 'uv' is not on PATH; install it with: pip install uv")
    with tempfile.TemporaryDirectory() as directory, PolicyServer(ToyPolicy()) as server:
        scratch = Path(directory)
        (scratch / "robot.py").write_text(OPENPI)
        robot, harness = (environment(uv, scratch, packages) for packages in (OPENPI_CLIENT, VLA_EVAL))
        with bridge(server.address, scratch) as urls:
            run(robot, "robot.py", urls["openpi"], TOKEN, cwd=scratch)
            print(f"check_bridges: {OPENPI_CLIENT[0]}: chunks, single steps, refusals")
            evaluate(harness, urls["vla_eval"], scratch)
            print(f"check_bridges: {VLA_EVAL[0]}: every episode succeeded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
