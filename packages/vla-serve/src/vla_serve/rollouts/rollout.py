"""Closed-loop evaluation: parallel simulator processes against a policy server."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from vla_core import registry
from vla_core.config import build_config
from vla_core.envs.recorded import RecordedEpisode
from vla_core.episodes import EpisodeSettings
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.provenance import describe as provenance
from vla_core.ranges import Natural, Positive, check_ranges

from vla_serve.clients.client import PolicyClient
from vla_serve.clients.connection import TLS
from vla_serve.messages.codec import Encoding
from vla_serve.rollouts import expert, mp4, replay, report
from vla_serve.rollouts import results as output
from vla_serve.rollouts.pool import Pool, ask_instructions
from vla_serve.rollouts.resume import FILE, Kept, kept
from vla_serve.rollouts.told import Hidden
from vla_serve.rollouts.worker import Done, EpisodeJob, Setup, Videos

__all__ = ["RolloutSettings", "rollout"]

# Named where installed.
_SIMULATORS = ("metaworld", "robosuite", "libero", "gym_pusht", "gym_aloha", "mujoco", "gymnasium")
_PACKAGES = ("vla-serve", "grpcio")


@dataclass(frozen=True)
class RolloutSettings(EpisodeSettings):
    """What to run. The same settings give the same episodes, whatever the number of workers.

    Which episodes, and how their chunks are executed: :class:`vla_core.episodes.EpisodeSettings`.

    Args:
        address: ``host:port`` of the server; empty with ``policy="expert"`` and with ``replay``.
        env: simulator by name (entry point ``vla.envs``).
        tasks: task names; each runs the same seeds.
        instruction: said in every episode instead of the simulator's own.
        instruction_from: say what this task would say in the same episode (swap experiment): a
            policy that listens achieves this task, one that does not the original.
        hide: ``images``: the policy gets black ones instead of the simulator's, and depth of which nothing is
            measured. What succeeds then, does so without looking. Videos show what was there.
        env_options: of the simulator's Config, without the task.
        videos: which episodes become mp4 files.
        max_failures_videos: at most so many failures a task.
        policy, embodiment: names on the server; empty: its only ones. ``expert`` without an address is the
            simulator's scripted expert.
        encoding: of images on the wire.
        timeout_s: deadline of a request, and how long a busy server is asked again.
        restart_s: a server that went away is waited for so long; the episode starts again with the new one.
        replay: a data set's directory: its actions are executed from its starts instead of a policy's;
            ``env_options`` come on top of the recorded ones.
    """

    address: str
    env: str
    tasks: tuple[str, ...]
    instruction: str | None = None
    instruction_from: str | None = None
    hide: Hidden | None = None
    env_options: Mapping[str, Any] = field(default_factory=dict)
    videos: Videos = "failures"
    max_failures_videos: Natural = 5
    policy: str = ""
    embodiment: str = ""
    encoding: Encoding = "raw"
    timeout_s: Positive = 30.0
    restart_s: Positive = 120.0
    replay: str | None = None

    @property
    def expert(self) -> bool:
        """Whether the simulator's expert acts instead of a policy."""
        return not self.address and self.policy == expert.NAME

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.replay:
            replay.check(self)
        elif not self.address and not self.expert:
            raise UserError("address: say where vla-serve listens (--address HOST:PORT), or --policy expert")
        self.check_pace(hint="--delay_steps N")
        if not self.tasks:
            raise UserError("tasks: name at least one (--task NAME)")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks: one is named twice in {list(self.tasks)}")
        if self.instruction is not None and self.instruction_from is not None:
            raise UserError("instruction and instruction_from exclude each other")
        if self.hide is not None and self.hide not in get_args(Hidden):
            raise UserError(f"hide: unknown '{self.hide}'{suggest(self.hide, get_args(Hidden))}")
        if self.videos not in get_args(Videos):
            raise UserError(f"videos: unknown '{self.videos}'{suggest(self.videos, get_args(Videos))}")


def _configs(env_class: Any, settings: RolloutSettings) -> dict[str, Any]:
    """Task -> validated Config, for the tasks to run and the one whose instructions are used."""
    known = env_class.tasks()
    if "task" in settings.env_options:
        raise ConfigError("env.task: name tasks with --task")
    configs = {}
    for task in dict.fromkeys((*settings.tasks, *filter(None, [settings.instruction_from]))):
        if known and task not in known:
            raise UserError(f"'{settings.env}' has no task '{task}'{suggest(task, known)}")
        configs[task] = build_config(env_class.Config, {**settings.env_options, "task": task}, where="env")
    return configs


def _setup(settings: RolloutSettings, env_class: Any, out: Path, access: Mapping[str, Any]) -> Setup:
    """What the workers of all tasks share."""
    return Setup(
        env_class=env_class,
        env_config=None,
        env=settings.env,
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
        hide=settings.hide,
        hold_steps=settings.hold_steps,
        ensembling=settings.ensembling,
        video_dir=out / "videos",
        thumbnail_dir=out / "thumbnails",
        error_dir=out / "errors",
        restart_s=settings.restart_s,
        access=access,
    )


def rollout(
    settings: RolloutSettings,
    out: str | Path,
    *,
    env_class: Any = None,
    overwrite: bool = False,
    tls: TLS | None = None,
    token: str | None = None,
    on_episode: Callable[[Done, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run all episodes and write ``results.json``, ``report.html`` and pictures below ``out``.

    Simulators run in spawned processes, so a script that calls this needs the usual
    ``if __name__ == "__main__":``. ``results.json`` is rewritten after every episode, and
    a call with the same ``out`` goes on from it: what ended is not run again, whatever the number of
    workers, and more episodes or tasks may be asked for.

    Args:
        settings: what to run.
        out: directory; made if absent.
        env_class: the simulator, instead of one found by name; must be importable.
        overwrite: replace results in ``out`` instead of going on.
        tls, token: how to know the server, and what to show it; written nowhere.
        on_episode: told each episode as it ends, with the counts of episodes done and in all.

    Returns:
        The content of ``results.json``. An episode whose simulator or request failed has ``error``
        and is in no rate; ``complete`` is False then. The traceback of a simulator is below ``errors``.

    Raises:
        UserError: unknown simulator, task or option, specs that differ from the contract's, or results of
            other weights or settings in ``out``.
        PolicyServerError: no server at the address.
        SimulatorDied: before the first episode, when it was asked for instructions.
    """
    if not settings.address and (tls is not None or token is not None):
        raise UserError("tls and token: there is no server without --address")
    if settings.videos != "none":
        mp4.require_av()
    env_class = env_class or registry.load("vla.envs", settings.env)
    seeds: Mapping[str, Sequence[int]] = {
        task: range(settings.seed, settings.seed + settings.episodes) for task in settings.tasks
    }
    replays: dict[str, dict[int, RecordedEpisode]] = {}
    if settings.replay:
        source, seeds = replay.chosen(settings.replay, settings.tasks, settings.episodes)
        settings = replace(settings, env_options={**source.options, **settings.env_options})
        for episode in source.episodes:
            replays.setdefault(episode.task, {})[episode.seed] = episode
    configs = _configs(env_class, settings)
    out = Path(out)
    base = _setup(settings, env_class, out, {"tls": tls, "token": token})
    if settings.replay:
        policy = replay.described()
    elif settings.expert:
        expert.check(env_class, settings.env, settings)
        policy = expert.described()
    else:
        with base.client() as probe:
            policy = _describe(probe, settings.policy)
    recorded: dict[str, Any] = {**asdict(settings), "vla_serve": importlib.metadata.version("vla-serve")}
    recorded["tasks"] = list(settings.tasks)
    try:
        (out / "thumbnails").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror})") from None
    before = Kept() if overwrite else kept(out, recorded, policy, seeds)
    done = before.done
    said: dict[int, str] = {}
    if settings.instruction_from is not None:
        other = replace(base, task=settings.instruction_from, env_config=configs[settings.instruction_from])
        asked = list(seeds[settings.tasks[0]])  # all tasks have the same
        said = dict(zip(asked, ask_instructions(other, asked), strict=True))
    setups = {
        task: replace(base, task=task, env_config=configs[task], replay=replays.get(task))
        for task in settings.tasks
    }
    ended = {(d.episode.task, d.episode.seed) for d in done}
    jobs = {
        task: [
            EpisodeJob(seed, said.get(seed, settings.instruction), settings.videos)
            for seed in seeds[task]
            if (task, seed) not in ended
        ]
        for task in settings.tasks
    }
    start, made_with = time.monotonic(), provenance([env_class.__module__, *_SIMULATORS], _PACKAGES)

    def results() -> dict[str, Any]:
        recorded["executed_steps"] = pool.executed_steps or before.executed_steps
        wall_s = before.wall_s + time.monotonic() - start
        return output.summarise(done, seeds, recorded, policy, wall_s, made_with)

    def save() -> dict[str, Any]:
        now = results()
        output.save(now, out / FILE)
        return now

    with Pool(setups, jobs, settings.workers, settings.max_failures_videos) as pool, ExitStack() as last:
        latest = save()
        last.callback(lambda: report.write(latest, out, output.text(latest)))
        for finished in pool:
            done.append(replace(finished, server=policy.get("server") or {}))
            latest = save()
            if on_episode is not None:
                on_episode(finished, len(done), sum(map(len, seeds.values())))
    return latest


def _describe(client: PolicyClient, name: str) -> dict[str, Any]:
    """What is served, and which weights answer under ``name`` (empty: the server's only name)."""
    info = client.server_info()
    names = [{"name": p.name, "framework": p.framework} for p in info.policies]
    asked = [p for p in info.policies if p.name == name or (not name and len(info.policies) == 1)]
    digests = asked[0].revision if asked else None
    return {
        "server_version": info.server_version,
        "policies": names,
        "checkpoint": digests.checkpoint if digests else "",
        "weights_digest": digests.weights_digest if digests else "",
        "statistics_digest": digests.statistics_digest if digests else "",
        "data_digest": digests.data_digest if digests else "",
        "server": _made_with(info.made_with),
    }


def _made_with(said: Any) -> dict[str, Any]:
    """Code, machine and packages of the server, which need not be this process's; empty where it is older."""
    if not said.python:
        return {}
    plain = {"cpu": said.cpu, "gpus": list(said.gpus), "python": said.python}
    return {"git_commit": said.git_commit or None, **plain, "packages": dict(sorted(said.packages.items()))}
