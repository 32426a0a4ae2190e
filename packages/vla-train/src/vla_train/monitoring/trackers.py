"""Where metrics go: ``metrics.jsonl`` (read by the report), TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vla_core.errors import ConfigError, UserError

from vla_train.checkpointing.small_files import into, write_text


@dataclass(frozen=True)
class TrackingConfig:
    """Where trackers with projects put a run.

    Args:
        project: of wandb and trackio.
        entity: user or team of wandb; null: the default of whoever is logged in.
    """

    project: str = "vla-train"
    entity: str | None = None


@dataclass(frozen=True)
class Tracked:
    """The run that trackers are told of.

    Args:
        run_dir: of it; its name is the run's.
        start: step that it goes on from; 0: it is new.
        config: resolved, as plain data.
        tracking: see :class:`TrackingConfig`.
    """

    run_dir: Path
    start: int
    config: Mapping[str, Any]
    tracking: TrackingConfig


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line; a resumed run drops the lines after the step it resumes from."""

    def __init__(self, run: Tracked) -> None:
        path, kept = run.run_dir / "metrics.jsonl", []
        if run.start and path.exists():
            # A killed run can leave half a line at the end, which is after the resume step anyway.
            lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= run.start]
        # Whole or as it was: a resumed run's history shall not be lost to a full disk or a kill.
        with into(path):
            write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot be written ({error.strerror or error})") from error

    def close(self) -> None:
        # What could not be written is tried again, and was said.
        with suppress(OSError):
            self._file.close()


class TensorBoard:
    """Scalars under the same names."""

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.start + 1 if run.start else None
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, below ``<run>/wandb``. ``WANDB_MODE=offline`` needs no network: ``wandb sync`` later.

    Raises:
        UserError: nobody is logged in, or the service cannot be reached.
    """

    def __init__(self, run: Tracked) -> None:
        import wandb

        # The service keeps what it was told: the run's own id says that this is the same one.
        note = run.run_dir / "wandb.json"
        known = json.loads(note.read_text("utf-8"))["id"] if run.start and note.is_file() else None
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(
                project=run.tracking.project,
                entity=run.tracking.entity,
                name=run.run_dir.name,
                dir=str(run.run_dir),
                config=dict(run.config),
                id=known,
                resume="allow" if known else None,
                settings=settings,
            )
        except wandb.Error as error:
            raise UserError(
                f"trackers: wandb: {str(error).splitlines()[0]}; wandb login, or set WANDB_MODE=offline, or "
                "leave wandb out of trackers"
            ) from error
        with into(note):
            write_text(note, json.dumps({"id": self._run.id}))
        # An axis of its own: wandb's must not fall, and a resumed run repeats steps that a killed one logged.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio of Hugging Face: a data base on this machine (``TRACKIO_DIR``), seen by ``trackio show``."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        self._run = trackio.init(
            project=run.tracking.project,
            name=run.run_dir.name,
            config=json.loads(json.dumps(dict(run.config))),
            resume="allow" if run.start else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


_MAKERS: dict[str, Callable[[Tracked], Tracker]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
TRACKERS = tuple(_MAKERS)


def check_trackers(names: Iterable[str]) -> None:
    """What the trackers need is installed.

    Raises:
        ConfigError: the package that is missing, and how to get it.
    """
    for name in names:
        if name in ("wandb", "trackio") and find_spec(name) is None:
            raise ConfigError(
                f"trackers: '{name}' is not installed; pip install 'vla-train[{name}]', or leave it out"
            )


class Trackers:
    """All trackers of a run; closed at the end of the block, however that comes.

    Args:
        names: of :data:`TRACKERS`; none on ranks other than the first.
        run: what they are told of it.
    """

    def __init__(self, names: Sequence[str], run: Tracked) -> None:
        self._all = [_MAKERS[name](run) for name in names]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self._all:
            tracker.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers by name at a step."""
        for tracker in self._all:
            tracker.log(step, metrics)


def opened(names: Sequence[str], run: Tracked, agree: Callable[[Callable[[], None]], None]) -> Trackers:
    """All trackers, on the first rank; a service that cannot be reached ends all, before the first step.

    Args:
        names: see :class:`Trackers`.
        run: see :class:`Trackers`.
        agree: has something done by the first rank, with its mistake on all.
    """
    made: list[Trackers] = []
    agree(lambda: made.append(Trackers(names, run)))
    return made[0] if made else Trackers((), run)
