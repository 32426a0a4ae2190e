"""What a resumed run may change: a run is one thing, from its first step to its last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError, UserError

from vla_train.checkpointing import resume
from vla_train.config import RunConfig
from vla_train.engine import Engine

FREE = (
    "run_root_dir", "run_id", "trackers", "tracking", "datasets.num_workers", "datasets.ram_cache",
    "datasets.fit_cache",
    "trainer.max_steps", "trainer.learning_rate", "trainer.schedule", "trainer.min_lr_ratio",
    "trainer.decay_ratio", "trainer.warmup_steps", "trainer.warmup_ratio", "trainer.betas", "trainer.eps",
    "trainer.weight_decay", "trainer.clip_norm", "trainer.device", "trainer.threads", "trainer.log_every",
    "trainer.peak_tflops", "trainer.skip_bad_steps",
    "trainer.val_every", "trainer.val_samples", "trainer.save_every", "trainer.keep_checkpoints",
    "trainer.keep_states",
    "trainer.save_format", "trainer.save_resume", "trainer.async_save",
    "trainer.keep_best", "trainer.patience", "trainer.resume",
    "trainer.evaluation",
    "datasets.on_bad_sample", "datasets.bad_sample_budget",
    # How a step is computed, not what; the engine is told by the state.
    "trainer.sharding", "trainer.reshard", "trainer.prefetch", "trainer.gather_mb", "trainer.bucket_mb",
    "trainer.hang_timeout_s", "trainer.compile", "trainer.activation_budget",
    "framework.vlm.gradient_checkpointing",
    # Their product with the number of processes is compared instead.
    "trainer.batch_size", "trainer.gradient_accumulation_steps",
    # What it did is in the weights.
    "trainer.pretrained_checkpoint", "trainer.reload_modules", "trainer.keep_statistics",
)  # fmt: skip
"""Keys that are applied from the step on where the run stopped."""
WHOLE = frozenset({"one process", "DDP"})
"""Engines whose states hold all in the same files."""


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two plain configs differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def check_engine(state: Path, engine: Engine) -> None:
    """The engine can read the state: of one process and of DDP they are the same.

    Raises:
        UserError: it is another one's.
    """
    facts = resume.recall(state)
    wrote, world = facts.get("engine", engine.name), facts.get("world", engine.world)
    if wrote == engine.name or {wrote, engine.name} <= WHOLE:
        return
    weights = state.parents[1] / "checkpoints" / state.name
    if wrote in WHOLE:
        how = "one process or DDP goes on from it"
    elif wrote == "FSDP2":
        how = "torchrun --nproc_per_node N with trainer.sharding=fsdp2 goes on from it, with any N, 1 too"
    else:
        how = "accelerate launch with its file and --num_processes N goes on from it"
    raise UserError(
        f"trainer.resume: {state} was written by {_processes(wrote, world)}, and this is "
        f"{_processes(engine.name, engine.world)}; {how}, and another run_id with "
        f"trainer.pretrained_checkpoint={weights} starts from its weights"
    )


def _processes(name: str, world: int) -> str:
    return name if world == 1 and name in WHOLE else f"{world} process{'es' * (world > 1)} of {name}"


def check_resumable(
    run_dir: Path, state: Path, resolved: Mapping[str, Any], samples: int, policy: Any
) -> None:
    """A run goes on as what it was.

    Args:
        run_dir: of the run.
        state: to go on from.
        resolved: the config to go on with.
        samples: of a step, over all processes and micro-batches.
        policy: built from that config and the data as it is now.

    Raises:
        UserError: a value that may not change: its key, the run's value and the new one.
    """
    path = run_dir / "config.yaml"
    if path.is_file():
        raw = yaml.safe_load(path.read_text("utf-8"))
        try:
            # With the defaults of keys that are newer than the run.
            old = to_plain(build_config(RunConfig, raw, "", Tree(raw)))
        except ConfigError as error:
            raise UserError(f"trainer.resume: {path}: {error}") from error
        plain = json.loads(json.dumps(dict(resolved)))
        for key, was, now in differences(json.loads(json.dumps(old)), plain):
            if not any(key == free or key.startswith(f"{free}.") for free in FREE):
                raise _changed(run_dir, key, was, now)
    before = resume.recall(state).get("samples_a_step", samples)
    if before != samples:
        raise _changed(
            run_dir, "batch_size x gradient_accumulation_steps x number of processes", before, samples
        )
    _check_robots(run_dir, run_dir / "checkpoints" / state.name, policy)


def _check_robots(run_dir: Path, checkpoint: Path, policy: Any) -> None:
    """The data describe the same robot, with the same statistics."""
    if not (checkpoint / "meta.json").is_file():
        return
    robots = {
        spec["embodiment"]: spec
        for spec in json.loads((checkpoint / "meta.json").read_text("utf-8"))["embodiments"]
    }
    statistics = json.loads((checkpoint / "norm_stats.json").read_text("utf-8"))
    for name, pipeline in policy.pipelines.items():
        now = json.loads(json.dumps(pipeline.input_spec.to_dict()))
        for key, was, new in differences(robots.get(name), now):
            raise _changed(run_dir, f"the data's {key or name}", was, new)
        stats = json.loads(json.dumps(pipeline.statistics.to_dict()))
        if statistics[name]["model"] != stats:
            raise UserError(
                f"trainer.resume: the data have other statistics than {checkpoint}/norm_stats.json; take the "
                "run's data, or start another run_id"
            )


def _changed(run_dir: Path, key: str, was: Any, now: Any) -> UserError:
    return UserError(
        f"trainer.resume: {key} was {json.dumps(was)} in {run_dir} and is {json.dumps(now)}; set it back, or "
        "start another run_id (with trainer.pretrained_checkpoint to keep the weights)"
    )
