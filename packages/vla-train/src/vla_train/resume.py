"""The state that only training needs, beside the checkpoints: ``<run>/resume/steps_N``."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator
from vla_core.checkpoint import fsync_tree
from vla_core.errors import UserError


def _step(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def newest(run_dir: Path) -> Path | None:
    """The newest whole resume state of a run."""
    found = sorted((run_dir / "resume").glob("steps_*"), key=_step)
    return found[-1] if found else None


def save(accelerator: Accelerator, run_dir: Path, step: int) -> None:
    """Optimizer, scheduler, random states and averages, atomically; older states are removed.

    All ranks call this: under ZeRO each holds its own part.
    """
    final = run_dir / "resume" / f"steps_{step}"
    temporary = run_dir / "resume" / f".steps_{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        fsync_tree(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in (run_dir / "resume").glob("steps_*"):
            if old != final:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load(accelerator: Accelerator, run_dir: Path) -> int:
    """Restore the newest state; returns its step.

    Raises:
        UserError: the run has none.
    """
    path = newest(run_dir)
    if path is None:
        raise UserError(f"{run_dir}: nothing to resume from; leave trainer.resume out or check run_id")
    accelerator.load_state(str(path))
    return _step(path)


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
