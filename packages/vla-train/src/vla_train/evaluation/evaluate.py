"""Closed-loop evaluation of a checkpoint, by ``vla-serve`` and ``vla-rollout`` as processes.

They are started as a user would start them, so the figure is that of the served policy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vla_core import registry
from vla_core.config import build_config
from vla_core.ensembling import check_averages
from vla_core.envs import SimulatorError, guarded
from vla_core.errors import ConfigError, SpecMismatch, UserError, suggest
from vla_core.history import deltas_of, spec_over
from vla_core.parent import end_with_parent
from vla_core.specs import ActionSpec, ObservationSpec, RobotSpec, check_action, check_observation

from vla_train.config import EvaluationConfig
from vla_train.guards.exits import BrokenOff

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 20.0
"""For a program to end by itself; clusters and torchrun give a run 30 s."""
LOOK_S = 0.2


def _program(name: str) -> str:
    """The console script beside this interpreter (a venv need not be on PATH), else on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise UserError(
            f"closed-loop evaluation needs the program {name}; install vla-serve[server], "
            "or leave trainer.evaluation.tasks empty"
        )
    return path


def check_evaluation(
    config: EvaluationConfig,
    robots: Mapping[str, RobotSpec],
    trace: Path,
    longest_delay: Callable[[str], int],
) -> None:
    """All that ``vla-rollout`` would refuse after the training, before it.

    The simulator is made once, in a process of its own: its graphics must not be inherited by data workers.

    Args:
        config: what is to be evaluated.
        robots: embodiment -> what the data have.
        trace: file for the traceback of a simulator that raises something of its own.
        longest_delay: of the policy, by embodiment; :class:`UserError` when it can continue no chunk.

    Raises:
        ConfigError: unknown simulator, task or option, or one that does not show or take what the data have.
    """
    if not config.tasks:
        return
    where = "trainer.evaluation"
    robot = config.embodiment or (next(iter(robots)) if len(robots) == 1 else None)
    if robot is None or robot not in robots:
        raise ConfigError(f"{where}.embodiment must name the simulator's robot, one of {', '.join(robots)}")
    spec = robots[robot]
    if len(set(config.tasks)) < len(config.tasks):
        raise ConfigError(f"{where}.tasks: one is named twice in {list(config.tasks)}")
    if "task" in config.env_options:
        raise ConfigError(f"{where}.env_options.task: name tasks in {where}.tasks")
    try:
        env = registry.load("vla.envs", config.env)
    except ConfigError as error:
        raise ConfigError(f"{where}.env: {error}") from error
    for task in config.tasks:
        if env.tasks() and task not in env.tasks():
            raise ConfigError(
                f"{where}.tasks: '{config.env}' has no task '{task}'{suggest(task, env.tasks())}"
            )
        build_config(env.Config, {**config.env_options, "task": task}, f"{where}.env_options")
    horizon = spec.action.horizon
    if config.execute_steps is not None and config.execute_steps > horizon:
        raise ConfigError(
            f"{where}.execute_steps: {config.execute_steps}, but a chunk has {horizon} steps "
            "(framework.horizon)"
        )
    if config.ensembling is not None:
        try:
            check_averages(spec.action, config.ensemble_newest or ())
        except UserError as error:
            raise ConfigError(f"{where}: {error}") from error
    delay = config.delay_steps if isinstance(config.delay_steps, int) else None
    if config.rtc:
        try:
            longest = longest_delay(robot)
        except UserError as error:
            raise ConfigError(f"{where}.rtc: {error}") from error
        if delay is not None and delay > longest:
            raise ConfigError(f"{where}.delay_steps: {delay}; this policy bridges at most {longest} steps")
    if delay is not None and delay >= horizon:
        raise ConfigError(
            f"{where}.delay_steps: {delay} leaves nothing of a chunk of {horizon} steps (framework.horizon)"
        )
    for name in ("vla-serve", "vla-rollout"):
        _program(name)
    # A simulator that lists no tasks may only know that one is wrong when it is made.
    for task in config.tasks[: 1 if env.tasks() else None]:
        observation, action = env_specs(env, {**config.env_options, "task": task}, config.env, trace)
        who = ("the data", f"{where}.env {config.env}")
        try:
            # `vla-rollout` shows earlier moments by itself.
            observation = spec_over(observation, deltas_of(spec.observation))
            check_observation(spec.observation, observation, who)
            check_action(spec.action, action, who, horizon=False)
        except SpecMismatch as error:
            raise ConfigError(
                f"{error}; set {where}.env_options to what the data were recorded with"
            ) from error


def env_specs(
    env: Any, options: Mapping[str, Any], name: str, trace: Path
) -> tuple[ObservationSpec, ActionSpec]:
    """What a simulator shows and takes; the traceback of one that fails is kept in ``trace``.

    Raises:
        ConfigError: options or a task that it refuses as it is made.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_specs, env, dict(options), name).result()
        except SimulatorError as error:
            raise ConfigError(f"trainer.evaluation.env: {error.kept(trace)}") from error
        except UserError as error:
            raise ConfigError(f"trainer.evaluation.env_options: {error}") from error
        except BrokenProcessPool as error:
            raise ConfigError("trainer.evaluation.env: its process died as it was made") from error


def _specs(env_class: Any, options: dict[str, Any], name: str) -> tuple[ObservationSpec, ActionSpec]:
    env = guarded(env_class, build_config(env_class.Config, options), name, str(options["task"]))
    try:
        return env.observation_spec, env.action_spec
    finally:
        env.close()


def _wait_for_port(
    server: subprocess.Popen[bytes], port_file: Path, log: Path, ending: Callable[[], bool]
) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not port_file.exists():
        if ending():
            raise BrokenOff
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise UserError(f"vla-serve did not start ({tail[0]}); its log is {log}")
        time.sleep(0.1)
    return int(port_file.read_text("utf-8"))


def rollout_command(config: EvaluationConfig, address: str, out: Path) -> list[str]:
    """The ``vla-rollout`` call that evaluates a server at ``address``."""
    command = [_program("vla-rollout"), "--address", address, "--env", config.env]
    command += ["--out", str(out), "--overwrite"]  # an earlier checkpoint may have been rolled out there
    for task in config.tasks:
        command += ["--task", task]
    command += config.options()
    if config.embodiment is not None:
        command += ["--embodiment", config.embodiment]
    for key, value in config.env_options.items():
        command += [f"--env.{key}", json.dumps(value) if not isinstance(value, str) else value]
    return command


def evaluate(
    checkpoint: Path,
    config: EvaluationConfig,
    run_dir: Path,
    device: str,
    ending: Callable[[], bool] = lambda: False,
) -> Mapping[str, Any]:
    """Serve ``checkpoint``, roll it out, and return ``results.json``.

    Args:
        checkpoint: what is served.
        config: what is rolled out.
        run_dir: of ``rollout`` and the programs' logs.
        device: of the server.
        ending: asked again and again whether to leave off.

    Raises:
        UserError: a program that fails, with the last line of its log and where the rest is.
        BrokenOff: ``ending`` said so; the programs have ended.
    """
    out, log = run_dir / "rollout", run_dir / "serve.log"
    with tempfile.TemporaryDirectory() as scratch, log.open("wb") as log_file:
        port_file = Path(scratch) / "port"
        command = [_program("vla-serve"), "--ckpt_path", str(checkpoint), "--port", "0"]
        command += ["--port_file", str(port_file), "--device", device]
        try:
            with _running(command, log_file) as server:
                address = f"127.0.0.1:{_wait_for_port(server, port_file, log, ending)}"
                _roll_out(config, address, run_dir, ending)
        except UserError as error:
            # A group of processes has its signal at once: the programs may end before this one looks again.
            time.sleep(LOOK_S)
            if ending():
                raise BrokenOff from error
            raise
    results: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    return results


def _roll_out(config: EvaluationConfig, address: str, run_dir: Path, ending: Callable[[], bool]) -> None:
    out, log = run_dir / "rollout", run_dir / "rollout.log"
    deadline = time.monotonic() + 60 * config.timeout_minutes
    # Rollout workers are many; more than one thread each would only fight over the cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as log_file, _running(rollout_command(config, address, out), log_file, env) as done:
        while done.poll() is None:
            if ending():
                raise BrokenOff
            if time.monotonic() > deadline:
                raise UserError(
                    f"vla-rollout took over {config.timeout_minutes:g} minutes; "
                    "raise trainer.evaluation.timeout_minutes or lower episodes"
                )
            time.sleep(LOOK_S)
    if done.returncode != 0:
        tail = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"vla-rollout failed ({tail[0]}); its log is {log}, and what it has is in {out}")


@contextmanager
def _running(
    command: Sequence[str], log: IO[bytes], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block, however that ends; on Linux with this process, were it killed."""
    if sys.platform == "linux":
        tied = Path(__file__).with_name("_tied.py")
        command = [sys.executable, "-I", "-S", str(tied), str(os.getpid()), *command]
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
