"""The state that only training needs, beside the checkpoints: ``<run>/resume/steps_N``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from vla_core.checkpoint import fsync_tree
from vla_core.errors import UserError

from vla_train.config import TrainerConfig
from vla_train.engine import Engine

FACTS = "run.json"
"""What a state depends on beside the config: processes and samples a step."""


def step_of(path: Path) -> int:
    """N of ``steps_N``."""
    return int(path.name.rpartition("_")[2])


def newest(run_dir: Path) -> Path | None:
    """The newest whole resume state of a run."""
    found = [p for p in (run_dir / "resume").glob("steps_*") if re.fullmatch(r"steps_\d+", p.name)]
    return max(found, key=step_of, default=None)


def samples_a_step(settings: TrainerConfig, world: int) -> int:
    """The effective batch size."""
    return settings.batch_size * settings.gradient_accumulation_steps * world


def save(engine: Engine, run_dir: Path, step: int, settings: TrainerConfig) -> None:
    """Optimizer and averages, atomically; older states are removed once the new one is in place.

    All ranks call this: under sharding each holds its own part.
    """
    final = run_dir / "resume" / f"steps_{step}"
    temporary = run_dir / "resume" / f".steps_{step}.tmp"
    if engine.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    engine.wait()
    try:
        engine.save(temporary)
    except OSError as error:
        raise UserError(
            f"{final}: cannot be written ({error.strerror or error}); the state before it is whole"
        ) from error
    engine.wait()

    def finish() -> None:
        facts = {"world": engine.world, "samples_a_step": samples_a_step(settings, engine.world)}
        (temporary / FACTS).write_text(json.dumps(facts))
        fsync_tree(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in (run_dir / "resume").glob("steps_*"):
            if old != final:
                shutil.rmtree(old)

    engine.agree(finish)


def load(engine: Engine, run_dir: Path) -> int:
    """Restore the newest state; returns its step.

    Raises:
        UserError: the run has none.
    """
    path = newest(run_dir)
    if path is None:
        raise UserError(f"{run_dir}: nothing to resume from; leave trainer.resume out or check run_id")
    engine.load(path)
    return step_of(path)


def run_directory(root: str, run_id: str, resuming: bool) -> Path:
    """``root/run_id``, made sure to be new (or there, when resuming).

    Raises:
        UserError: it holds a run already, or there is none to resume.
    """
    path = Path(root) / run_id
    if resuming and newest(path) is None:
        raise UserError(f"trainer.resume: {path} has no resume state; check run_root_dir and run_id")
    if not resuming and (path / "checkpoints").exists():
        raise UserError(
            f"{path} holds a run already; choose another run_id, or go on with trainer.resume=true"
        )
    return path
