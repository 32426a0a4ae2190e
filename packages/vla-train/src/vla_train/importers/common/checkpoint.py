"""From a ledger and a framework section to a checkpoint directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.errors import UserError
from vla_core.framework import FrameworkConfig
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats

from vla_train.importers.common.ledger import Ledger

REPORT = "import_report.txt"


@dataclass(frozen=True)
class Imported:
    """The checkpoint and what to tell the user: how many tensors went where, and notes."""

    path: Path
    counts: str
    notes: list[str]

    @property
    def report(self) -> Path:
        """The file with a line a tensor."""
        return self.path / REPORT


def check_free(out: Path) -> None:
    """Raise :class:`UserError` if there is something at ``out`` already."""
    if out.exists():
        raise UserError(f"{out}: exists; name a directory that does not")


def write(
    section: Mapping[str, Any],
    spec: RobotSpec,
    statistics: NormStats,
    ledger: Ledger,
    out: Path,
    *,
    step: int,
    origin: str,
    notes: Sequence[str],
    late: Callable[[Mapping[str, Tensor]], None] | None = None,
) -> Imported:
    """Write the checkpoint directory ``out``, whole or not at all.

    Args:
        section: the ``framework`` section.
        spec: the robot, with raw statistics.
        statistics: those at the normalisation step.
        ledger: with the moves made.
        out: a directory that does not exist.
        step: optimisation step of the weights.
        origin: first line of the report.
        notes: what the user should know.
        late: moves that need the policy's own tensors (on the meta device).

    Raises:
        UserError: a tensor that nothing explains, one that is missing or does not fit.
    """
    config = build_config(FrameworkConfig, dict(section), "framework")
    name = spec.embodiment
    # Shapes alone: the checkpoint fills them, whatever the size.
    with torch.device("meta"):
        policy = build_policy(config, {name: spec}, statistics={name: statistics})
    own = policy.model.state_dict()
    if late is not None:
        late(own)
    policy.model.load_state_dict(ledger.finish(own), strict=True, assign=True)
    policy.save(out, step=step)
    said = [origin, ledger.counts(), *notes, *ledger.lines()]
    (out / REPORT).write_text("\n".join(said) + "\n", "utf-8")
    return Imported(out, ledger.counts(), list(notes))
