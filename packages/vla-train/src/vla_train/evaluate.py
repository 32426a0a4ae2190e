"""Closed-loop evaluation of a checkpoint, by ``vla-serve`` and ``vla-rollout`` as processes.

They are started as a user would start them, so the figure is that of the served policy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

from vla_train.config import EvaluationConfig

START_TIMEOUT_S = 180.0


def _program(name: str) -> str:
    """The console script beside this interpreter (a venv need not be on PATH), else on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise UserError(
            f"closed-loop evaluation needs the program {name}; install vla-serve[server], "
            "or leave trainer.evaluation.tasks empty"
        )
    return path


def _wait_for_port(server: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not port_file.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text().strip().splitlines()[-1:] or ["no output"]
            raise UserError(f"vla-serve did not start ({tail[0]}); its log is {log}")
        time.sleep(0.1)
    return int(port_file.read_text())


def rollout_command(config: EvaluationConfig, address: str, out: Path) -> list[str]:
    """The ``vla-rollout`` call that evaluates a server at ``address``."""
    command = [_program("vla-rollout"), "--address", address, "--env", config.env, "--out", str(out)]
    for task in config.tasks:
        command += ["--task", task]
    command += ["--episodes", str(config.episodes), "--seed", str(config.seed)]
    command += ["--workers", str(config.workers)]
    if config.execute_steps is not None:
        command += ["--execute_steps", str(config.execute_steps)]
    for key, value in config.env_options.items():
        command += [f"--env.{key}", json.dumps(value) if not isinstance(value, str) else value]
    return command


def evaluate(checkpoint: Path, config: EvaluationConfig, run_dir: Path, device: str) -> Mapping[str, Any]:
    """Serve ``checkpoint``, roll it out, and return ``results.json``.

    Raises:
        UserError: a program that fails, with the last line of its log and where the rest is.
    """
    out, log = run_dir / "rollout", run_dir / "serve.log"
    with tempfile.TemporaryDirectory() as scratch, log.open("wb") as log_file:
        port_file = Path(scratch) / "port"
        server = subprocess.Popen(
            [_program("vla-serve"), "--ckpt_path", str(checkpoint), "--port", "0",
             "--port_file", str(port_file), "--device", device],
            stdout=log_file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            address = f"127.0.0.1:{_wait_for_port(server, port_file, log)}"
            # Rollout workers are many; more than one thread each would only fight over the cores.
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            rollout_log = run_dir / "rollout.log"
            with rollout_log.open("wb") as rollout_file:
                done = subprocess.run(
                    rollout_command(config, address, out),
                    env=env, stdin=subprocess.DEVNULL, stdout=rollout_file, stderr=subprocess.STDOUT,
                    timeout=60 * config.timeout_minutes, check=False,
                )  # fmt: skip
            if done.returncode != 0:
                tail = rollout_log.read_text().strip().splitlines()[-1:] or ["no output"]
                raise UserError(f"vla-rollout failed ({tail[0]}); its log is {rollout_log}")
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"vla-rollout took over {config.timeout_minutes:g} minutes; "
                "raise trainer.evaluation.timeout_minutes or lower episodes"
            ) from error
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results
