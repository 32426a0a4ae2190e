"""The rows of an ablation: one JSON object a line, one line a (variant, seed), written atomically."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vla_core.errors import UserError

from vla_train.checkpointing.small_files import write_text

FILE = "rows.jsonl"


@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        variant: label of the cell.
        seed: of the run.
        status: ``finished``, or ``failed`` with its one line in ``error``.
        axes: axis -> value.
        keys: config keys that the axes set.
        config: resolved config without seed and place.
        error: of a failed run.
        parameters, trainable: counts over the whole policy.
        samples_per_s: training throughput, median over the logged intervals.
        latency_p50_ms: of ``act()`` for one observation.
        action_error: mean absolute error of held-out chunks, normalised as the model sees them.
        success: closed-loop ``{successes, episodes, failed}``.
        metrics: everything the last validation gave.
        device: what it ran on.
        run: folder of the run, relative to the ablation's.
        finished: date and time (UTC).
        jobs: runs that shared the machine, this one included, at most; above 1 times are not the run's own.
    """

    variant: str
    seed: int
    status: Literal["finished", "failed"]
    axes: Mapping[str, str]
    keys: Sequence[str]
    config: Mapping[str, Any]
    error: str | None = None
    parameters: int | None = None
    trainable: int | None = None
    samples_per_s: float | None = None
    latency_p50_ms: float | None = None
    action_error: float | None = None
    success: Mapping[str, int] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    run: str = ""
    finished: str = ""
    jobs: int = 1

    @property
    def key(self) -> tuple[str, int]:
        return self.variant, self.seed

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"'{self.variant}' seed {self.seed}"


def read_rows(folder: Path) -> list[Row]:
    """The rows in ``folder``; none if there is no file yet.

    Raises:
        UserError: a line that is not a row, with its number.
    """
    path = folder / FILE
    if not path.exists():
        return []
    known = {f.name for f in fields(Row)}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            node = json.loads(line)
            if not isinstance(node, dict) or not node.keys() <= known:
                raise ValueError
            row = Row(**node)
        except (ValueError, TypeError):
            raise UserError(f"{path}:{number}: not a row of an ablation; remove the line") from None
        rows.append(row)
    return rows


def order_of(rows: Sequence[Row], planned: Sequence[str]) -> list[str]:
    """Variants as they stand in the file, whichever run ends first: as planned, behind other plans'."""
    there = dict.fromkeys(row.variant for row in rows)
    return list(planned) if set(there) <= set(planned) else list(there | dict.fromkeys(planned))


def put_row(folder: Path, row: Row, order: Sequence[str] = ()) -> None:
    """Add ``row``, in place of one of the same variant and seed; a reader sees the old file or the new.

    Args:
        folder: of the ablation.
        row: a run that has ended.
        order: of the variants, by :func:`order_of`; without it new rows stand last.
    """
    rows = read_rows(folder)
    keys = [other.key for other in rows]
    if row.key in keys:
        rows[keys.index(row.key)] = row
    else:
        rows.append(row)
    rows.sort(key=lambda other: order.index(other.variant) if other.variant in order else len(order))
    write_text(folder / FILE, "".join(json.dumps(asdict(r)) + "\n" for r in rows))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; two ablations in one would train the same rows twice.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {folder}: another ablation is writing there; wait for it") from None
        yield
