"""What a policy learns from the data before it is built, kept under a key of all that changes it.

Statistics of the transformed numbers, and what a head of words learns (the FAST tokenizer).

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vla_core.answers import Chunks, FittedHead
from vla_core.errors import UserError
from vla_core.resolve import Resolved
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.transforms import Pipeline
from vla_core.transforms.base import Floats
from vla_core.transforms.pipeline import Rows
from vla_core.types import Bool

STATISTICS = "statistics.json"
HEAD = "head"


@dataclass(frozen=True)
class FitCache:
    """Where what was learned is kept between runs.

    Args:
        directory: of all entries.
        data: a fingerprint of the rows: which data sets, episodes, columns, horizon. Transforms, robots, the
            head's config and package versions are added to the key here.
    """

    directory: Path
    data: str


@dataclass(frozen=True)
class Fitted:
    """What was learned.

    Args:
        statistics: embodiment -> statistics at the normalisation step.
        head_assets: directory for :meth:`~vla_core.answers.FittedHead.load_assets`, or None.
        scratch: holds the directory while this lives, where nothing is kept.
    """

    statistics: Mapping[str, NormStats]
    head_assets: Path | None = None
    scratch: object = field(default=None, repr=False, compare=False)


def fit(
    resolved: Resolved,
    specs: Mapping[str, RobotSpec],
    rows: Mapping[str, Rows] | None = None,
    *,
    statistics: Mapping[str, NormStats] | None = None,
    head_assets: Path | None = None,
    cache: FitCache | None = None,
) -> Fitted:
    """Learn from the training rows all that ``resolved`` wants learned.

    Args:
        resolved: the framework.
        specs: embodiment -> raw robot spec.
        rows: embodiment -> low-dimensional rows; None: there are none (a policy to look at).
        statistics: embodiment -> statistics known from elsewhere; those robots' are not computed.
        head_assets: what the head learned elsewhere; then it does not learn here.
        cache: take from there what an earlier run learned, and keep it there.

    Raises:
        ConfigError: statistics that must be computed, and no rows; what the head itself says.
    """
    learns = issubclass(resolved.head.cls, FittedHead) and head_assets is None
    entry = None if cache is None or statistics else cache.directory / _key(resolved, specs, cache.data)
    if entry is not None and entry.is_dir():
        kept = json.loads((entry / STATISTICS).read_text("utf-8"))
        learned = {name: NormStats.from_dict(stats) for name, stats in kept.items()}
        return Fitted(learned, entry / HEAD if learns else head_assets)
    pipelines = {}
    read = {name: _Noticed(own) for name, own in (rows or {}).items()}
    for name, spec in specs.items():
        nodes, where = resolved.config.transforms_of(name)
        known, own = (statistics or {}).get(name), read.get(name)
        pipelines[name] = Pipeline(nodes, spec, statistics=known, rows=own, where=where, tree=resolved.tree)
    learned = {name: pipeline.statistics for name, pipeline in pipelines.items()}
    if not learns and (entry is None or not any(own.noticed for own in read.values())):
        # The statistics are the specs': nothing was learned that is worth keeping.
        return Fitted(learned, head_assets)
    scratch = tempfile.TemporaryDirectory(prefix="vla-fitted-")
    made = Path(scratch.name)
    (made / STATISTICS).write_text(json.dumps({name: s.to_dict() for name, s in learned.items()}))
    if learns:
        (made / HEAD).mkdir()
        dim = max(pipeline.output_spec.action.dim for pipeline in pipelines.values())
        resolved.head.cls.fit(
            resolved.head.config, _chunks(pipelines, rows), resolved.config.horizon, dim, made / HEAD
        )
    if entry is not None:
        made = _keep(made, entry)
    return Fitted(learned, made / HEAD if learns else head_assets, scratch)


class _Noticed:
    """Rows that remember whether they were read."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.noticed = rows, False

    def __call__(self) -> Iterable[tuple[Floats | None, Floats, Bool]]:
        self.noticed = True
        return self.rows()


def _chunks(pipelines: Mapping[str, Pipeline], rows: Mapping[str, Rows] | None) -> Chunks | None:
    if not rows:
        return None

    def chunks() -> Iterator[tuple[Floats, Bool]]:
        for name, embodiment in rows.items():
            for state, actions, mask in embodiment():
                yield pipelines[name].targets(state, actions, mask)

    return chunks


def _keep(made: Path, entry: Path) -> Path:
    """A copy under the final name, whole from its first moment; one that was made meanwhile is kept."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".fit-", dir=entry.parent))
        shutil.copytree(made, temporary, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"{entry.parent}: cannot be written ({error.strerror or error})") from error
    try:
        os.rename(temporary, entry)
    except OSError:
        shutil.rmtree(temporary)
        if not entry.is_dir():
            raise
    return entry


def _key(resolved: Resolved, specs: Mapping[str, RobotSpec], data: str) -> str:
    config = resolved.config
    content: dict[str, Any] = {
        "data": data,
        "robots": {
            n: [s.to_dict(), s.statistics.to_dict(), config.transforms_of(n)[0]] for n, s in specs.items()
        },
        "horizon": config.horizon,
        "packages": [_version(name) for name in ("vla-core", "vla-heads")],
    }
    if issubclass(resolved.head.cls, FittedHead):
        content["head"] = resolved.head.node
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
