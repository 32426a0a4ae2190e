"""The state that only training needs, beside the checkpoints: ``<run>/resume/steps_N``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from vla_core.errors import UserError
from vla_core.files import fsync_tree, recover_directories, replace_directory
from vla_core.weights import writing

from vla_train.checkpointing.snapshots import Snapshots
from vla_train.checkpointing.states import (
    FACTS,
    FILES,
    Choice,
    choose,
    listed,
    sealed,
    set_aside,
    states,
    step_of,
)
from vla_train.checkpointing.writer import Writer
from vla_train.config import TrainerConfig
from vla_train.engine import Engine

DAMAGED = (EOFError, KeyError, OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError)
"""What the readers of the engines' files raise."""


def newest(run_dir: Path) -> Path | None:
    """The newest resume state of a run."""
    return next(iter(states(run_dir)), None)


def samples_a_step(settings: TrainerConfig, world: int) -> int:
    """The effective batch size."""
    return settings.batch_size * settings.gradient_accumulation_steps * world


def save(
    engine: Engine,
    run_dir: Path,
    step: int,
    settings: TrainerConfig,
    memory: Mapping[str, Any],
    writer: Writer,
    snapshots: Snapshots,
) -> None:
    """Optimizer and averages, atomically; older states are removed once the new one is in place.

    All ranks call this: under sharding each holds its own part.

    Args:
        engine: what to save of.
        run_dir: of the run.
        step: that is done.
        settings: of the run.
        memory: plain data for :func:`recall`.
        writer: gives the state its name; beside the training it also writes.
        snapshots: for a writer beside the training.
    """
    final = run_dir / "resume" / f"steps_{step}"
    temporary = run_dir / "resume" / f".steps_{step}.tmp"
    if engine.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    engine.wait()
    failure: OSError | None = None
    rest: Callable[[], None] = _nothing
    try:
        with writing():
            if writer.beside:
                rest = engine.save_later(temporary, snapshots.take, writer.channel)
            else:
                engine.save(temporary)
    except OSError as error:
        failure = error
    # Nobody waits for a rank that could not write.
    failed = torch.tensor(0.0 if failure is None else 1.0, device=engine.device)
    if float(engine.sum(failed)):
        if engine.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        said = engine.gather(["" if failure is None else str(failure.strerror or failure)])
        rank, words = next((rank, words) for rank, words in enumerate(said) if words)
        # What all say is known to be of one of them; all ranks raise the same, and the first says it.
        raise _unwritten(
            final, OSError(words if len(set(said)) == 1 else f"{words}, on rank {rank}")
        ) from failure
    facts = {
        "engine": engine.name,
        "world": engine.world,
        "samples_a_step": samples_a_step(settings, engine.world),
        **memory,
    }
    keep = settings.keep_states or 1
    if writer.beside:
        writer.run_together(rest, lambda failure: _finish(failure, temporary, final, facts, keep))
    else:
        writer.run(lambda: _finish(None, temporary, final, facts, keep))


def _nothing() -> None:
    """All is written."""


def _finish(
    failure: OSError | None, temporary: Path, final: Path, facts: Mapping[str, Any], keep: int
) -> None:
    """Give a state its name once all is written, and remove older ones."""
    try:
        if failure is not None:
            raise failure
        (temporary / FACTS).write_text(sealed({**facts, FILES: listed(temporary)}))
        fsync_tree(temporary)
        replace_directory(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _unwritten(final, error) from error
    # The new one stays, whatever its number.
    others = [old for old in states(final.parents[1]) if old != final]
    for old in others[keep - 1 :]:
        shutil.rmtree(old)


def _unwritten(final: Path, error: OSError) -> UserError:
    return UserError(f"{final}: cannot be written ({error.strerror or error}); the state before it is whole")


def recall(path: Path | None) -> dict[str, Any]:
    """What :func:`save` was given to remember, of a state; None: nothing.

    Raises:
        UserError: it is damaged.
    """
    facts = None if path is None else path / FACTS
    if path is None or facts is None or not facts.is_file():
        return {}
    with _reading(path):
        return dict(json.loads(facts.read_text("utf-8")))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a state that was cut short or overwritten makes of its readers is one line."""
    try:
        yield
    except DAMAGED as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _damaged(path, f"damaged, or of another version ({said})") from error


def _damaged(path: Path, what: str) -> UserError:
    weights = path.parents[1] / "checkpoints" / path.name
    return UserError(
        f"{path}: {what}; trainer.resume=auto takes an older state that is whole, and another run_id with "
        f"trainer.pretrained_checkpoint={weights} starts from its weights"
    )


def the_newest(engine: Engine, run_dir: Path) -> Choice:
    """The newest state of a run, which is to be whole.

    Raises:
        UserError: it is not.
    """
    found = choose(engine, run_dir, most=1)

    def refuse() -> None:
        for path, why in found.damaged:
            raise _damaged(path, f"damaged ({why})")

    engine.agree(refuse)
    return found


def load(engine: Engine, run_dir: Path, choice: Choice) -> int:
    """Restore the state that was chosen; returns its step. Damaged ones are set aside.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def tidy() -> None:
        set_aside(choice)
        for folder in (run_dir / "resume", run_dir / "checkpoints"):
            recover_directories(folder)

    engine.agree(tidy)
    path = choice.state
    if path is None:
        raise UserError(f"{run_dir}: nothing to resume from; leave trainer.resume out or check run_id")
    with _reading(path):
        engine.load(path)
    return step_of(path)


def ways_on(run_dir: Path) -> str:
    """How to go on with a run that ended early, by what it has saved."""
    if newest(run_dir) is not None:
        return f"go on with run_id={run_dir.name} trainer.resume=true"
    found = sorted((run_dir / "checkpoints").glob("steps_*"), key=step_of)
    if found:
        return (
            "no state to go on from is kept (trainer.save_resume); another run_id with "
            f"trainer.pretrained_checkpoint={found[-1]} starts from its weights"
        )
    return "nothing was saved yet (trainer.save_every)"


def run_directory(root: str, run_id: str, resuming: bool, replacing: bool = False) -> Path:
    """``root/run_id``, made sure to be new (or there, when resuming; or else to be set aside first).

    Raises:
        UserError: it holds a run already, there is none to resume, or it cannot be written.
    """
    path = Path(root) / run_id
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "read-only, or no right to" if there.is_dir() else "a file"
        raise UserError(f"run_root_dir: {path} cannot be written ({there}: {reason})")
    if resuming and newest(path) is None:
        there_is = f"; {ways_on(path)}" if path.exists() else ""
        raise UserError(
            f"trainer.resume: {path} has no resume state{there_is}; check run_root_dir and run_id"
        )
    if not (resuming or replacing) and (path / "checkpoints").exists():
        raise UserError(f"{path} holds a run already; choose another run_id, or: {ways_on(path)}")
    return path
