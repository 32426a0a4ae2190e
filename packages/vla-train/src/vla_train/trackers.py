"""Where metrics go: ``metrics.jsonl`` (read by the report) and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line; a resumed run drops the lines after the step it resumes from."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = []
        if resume_step and path.exists():
            # A killed run can leave half a line at the end, which is after the resume step anyway.
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= resume_step]
        self._file = path.open("w", buffering=1)
        for line in kept:
            self._file.write(line + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars under the same names."""

    def __init__(self, directory: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resume_step + 1 if resume_step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def make_trackers(names: Sequence[str], run_dir: Path, resume_step: int) -> list[Tracker]:
    """The trackers of a run."""
    out: list[Tracker] = []
    if "jsonl" in names:
        out.append(JsonLines(run_dir / "metrics.jsonl", resume_step))
    if "tensorboard" in names:
        out.append(TensorBoard(run_dir / "tensorboard", resume_step))
    return out
