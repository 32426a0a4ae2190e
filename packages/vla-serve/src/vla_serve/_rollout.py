"""Closed-loop evaluation: parallel simulator processes against a policy server."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from vla_core import registry
from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.ranges import Count, Natural, Positive, Seed, check_ranges

from vla_serve import _rollout_results as output
from vla_serve import _video
from vla_serve._rollout_pool import Pool, ask_instructions
from vla_serve._rollout_worker import Done, Job, Setup, Videos
from vla_serve.client import PolicyClient
from vla_serve.codec import Encoding

__all__ = ["RolloutSettings", "rollout"]


@dataclass(frozen=True)
class RolloutSettings:
    """What to run. The same settings give the same episodes, whatever the number of workers.

    Args:
        address: ``host:port`` of the server.
        env: simulator by name (entry point ``vla.envs``).
        tasks: task names; each runs the same seeds.
        episodes: per task, with seeds ``seed``, ``seed + 1``, ...
        seed: the first.
        workers: simulator processes.
        execute_steps: actions of a chunk that are executed before the next request; None: half of
            the chunk, rounded up. Fewer react sooner, more need fewer requests. At most what the delay
            leaves of a chunk.
        rtc: answers continue the chunk that is executed (real-time chunking); needs ``delay_steps``.
        delay_steps: what an answer takes, in control steps: so many more are executed from the chunk before.
            None (and 0): the simulator waits for each answer. The real latency does not matter.
        instruction: said in every episode instead of the simulator's own.
        instruction_from: say what this task would say in the same episode (swap experiment): a
            policy that listens achieves this task, one that does not the original.
        env_options: of the simulator's Config, without the task.
        videos: which episodes become mp4 files.
        max_failures_videos: at most so many failures a task.
        policy, embodiment: names on the server; empty: its only ones.
        encoding: of images on the wire.
        timeout_s: deadline of a request, and how long a busy server is asked again.
        restart_s: a server that went away is waited for so long; the episode starts again with the new one.
    """

    address: str
    env: str
    tasks: tuple[str, ...]
    episodes: Count = 20
    seed: Seed = 10_000
    workers: Count = 2
    execute_steps: Count | None = None
    rtc: bool = False
    delay_steps: Natural | None = None
    instruction: str | None = None
    instruction_from: str | None = None
    env_options: Mapping[str, Any] = field(default_factory=dict)
    videos: Videos = "failures"
    max_failures_videos: Natural = 5
    policy: str = ""
    embodiment: str = ""
    encoding: Encoding = "raw"
    timeout_s: Positive = 30.0
    restart_s: Positive = 120.0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.rtc and self.delay_steps is None:
            raise UserError("rtc: say how many control steps an answer takes (--delay_steps N)")
        if not self.tasks:
            raise UserError("tasks: name at least one (--task NAME)")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks: one is named twice in {list(self.tasks)}")
        if self.instruction is not None and self.instruction_from is not None:
            raise UserError("instruction and instruction_from exclude each other")
        if self.videos not in get_args(Videos):
            raise UserError(f"videos: unknown '{self.videos}'{suggest(self.videos, get_args(Videos))}")


def _configs(env_class: Any, settings: RolloutSettings) -> dict[str, Any]:
    """Task -> validated Config, for the tasks to run and the one whose instructions are used."""
    known = env_class.tasks()
    if "task" in settings.env_options:
        raise ConfigError("env.task: name tasks with --task")
    configs = {}
    for task in dict.fromkeys((*settings.tasks, *filter(None, [settings.instruction_from]))):
        if task not in known:
            raise UserError(f"'{settings.env}' has no task '{task}'{suggest(task, known)}")
        configs[task] = build_config(env_class.Config, {**settings.env_options, "task": task}, where="env")
    return configs


def rollout(
    settings: RolloutSettings,
    out: str | Path,
    *,
    env_class: Any = None,
    on_episode: Callable[[Done, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run all episodes and write ``results.json`` and ``videos/`` below ``out``.

    Simulators run in spawned processes, so a script that calls this needs the usual
    ``if __name__ == "__main__":``. ``results.json`` is rewritten after every episode: an interrupted
    run keeps what it has.

    Args:
        settings: what to run.
        out: directory; made if absent.
        env_class: the simulator, instead of one found by name; must be importable.
        on_episode: told each episode as it ends, with the counts of episodes done and in all.

    Returns:
        The content of ``results.json``. An episode whose simulator or request failed has ``error``
        and is in no rate; ``complete`` is False then.

    Raises:
        UserError: unknown simulator, task or option, or specs that differ from the contract's.
        PolicyServerError: no server at the address.
        SimulatorDied: before the first episode, when it was asked for instructions.
    """
    if settings.videos != "none":
        _video.require_av()
    env_class = env_class or registry.load("vla.envs", settings.env)
    configs = _configs(env_class, settings)
    with PolicyClient(settings.address, timeout_s=settings.timeout_s) as probe:
        policy = _describe(probe)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(settings.seed, settings.seed + settings.episodes))
    said: Sequence[str | None] = [settings.instruction] * len(seeds)
    if settings.instruction_from is not None:
        said = ask_instructions(env_class, configs[settings.instruction_from], seeds)
    base = Setup(
        env_class=env_class,
        env_config=None,
        task="",
        address=settings.address,
        policy=settings.policy,
        embodiment=settings.embodiment,
        encoding=settings.encoding,
        timeout_s=settings.timeout_s,
        execute_steps=settings.execute_steps,
        rtc=settings.rtc,
        delay_steps=settings.delay_steps,
        stop_at=settings.instruction_from,
        video_dir=out / "videos",
        restart_s=settings.restart_s,
    )
    setups = {task: replace(base, task=task, env_config=configs[task]) for task in settings.tasks}
    jobs = {
        task: [Job(seed, text, settings.videos) for seed, text in zip(seeds, said, strict=True)]
        for task in settings.tasks
    }
    start, done, latest = time.monotonic(), list[Done](), dict[str, Any]()
    recorded: dict[str, Any] = {**asdict(settings), "vla_serve": importlib.metadata.version("vla-serve")}
    recorded["tasks"] = list(settings.tasks)

    def results() -> dict[str, Any]:
        recorded["executed_steps"] = pool.executed_steps
        return output.summarise(done, settings.tasks, recorded, policy, time.monotonic() - start)

    with Pool(setups, jobs, settings.workers, settings.max_failures_videos) as pool:
        for finished in pool:
            done.append(finished)
            latest = results()
            output.save(latest, out / "results.json")
            if on_episode is not None:
                on_episode(finished, len(done), len(seeds) * len(setups))
    return latest


def _describe(client: PolicyClient) -> dict[str, Any]:
    info = client.server_info()
    names = [{"name": p.name, "framework": p.framework} for p in info.policies]
    return {"server_version": info.server_version, "policies": names}
