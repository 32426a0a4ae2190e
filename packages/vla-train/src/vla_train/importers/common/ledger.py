"""Every tensor of a foreign checkpoint and where it went; what is left over is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from vla_core.errors import UserError

Change = Callable[..., Tensor]


def join(*tensors: Tensor) -> Tensor:
    """Rows of several matrices (or vectors) one below the other."""
    return torch.cat(tensors)


@dataclass(frozen=True)
class Entry:
    """One line of the report: ``what`` is mapped, dropped or new."""

    what: str
    sources: tuple[str, ...]
    target: str
    note: str


class Ledger:
    """Moves tensors from the names of a checkpoint to those of a policy.

    Args:
        state: the checkpoint's state dict.
        file: where it came from, for errors.
        origin: the system that wrote it, likewise.
    """

    def __init__(self, state: Mapping[str, Tensor], file: Path, origin: str) -> None:
        self.state, self.file, self.origin = dict(state), file, origin
        self.result: dict[str, Tensor] = {}
        self.entries: list[Entry] = []
        self._left = set(state)
        self._missing: list[str] = []

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that must be there.

        Raises:
            UserError: it is not, so this is no checkpoint of the framework that the config names.
        """
        if name not in self.state:
            raise UserError(
                f"{self.file}: has no '{name}'; the weights are not those of the framework in the config"
            )
        return tuple(self.state[name].shape)

    def count(self, pattern: str, prefix: str = "") -> int:
        """One more than the largest number that the only group of ``pattern`` finds after ``prefix``."""
        names = [name.removeprefix(prefix) for name in self.state if name.startswith(prefix)]
        found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    def move(
        self, sources: str | Sequence[str], target: str, change: Change | None = None, note: str = ""
    ) -> None:
        """Give ``target`` what ``change`` makes of the sources (one, unless changed)."""
        names = (sources,) if isinstance(sources, str) else tuple(sources)
        absent = [name for name in names if name not in self.state]
        if absent:
            self._missing += absent
            return
        tensors = [self.state[name] for name in names]
        self.result[target] = change(*tensors) if change is not None else tensors[0]
        self._left -= set(names)
        self.entries.append(Entry("mapped", names, target, note))

    def linear(self, source: str, target: str, change: Change | None = None) -> None:
        """Weight and bias; ``change`` is for the weight."""
        self.move(f"{source}.weight", f"{target}.weight", change)
        self.move(f"{source}.bias", f"{target}.bias")

    def drop(self, prefix: str, reason: str) -> None:
        """Leave out what begins with ``prefix``, if there is anything."""
        for name in sorted(name for name in self._left if name.startswith(prefix)):
            self._left.discard(name)
            self.entries.append(Entry("dropped", (name,), "", reason))

    def new(self, target: str, value: Tensor, reason: str) -> None:
        """A tensor that the checkpoint has no counterpart for."""
        self.result[target] = value
        self.entries.append(Entry("new", (), target, reason))

    def finish(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict for a policy whose own (maybe on the meta device) is ``wanted``.

        Raises:
            UserError: a tensor of the checkpoint that nothing explains, one that is missing, or one
                of another shape than the policy's.
        """
        problems = []
        if self._left:
            problems.append(f"unexplained {_some(sorted(self._left))}")
        missing = [*self._missing, *sorted(set(wanted) - set(self.result))]
        if missing and not (self._missing and self._left):
            problems.append(f"missing {_some(missing)}")
        elif missing:
            problems.append(f"missing {_some(self._missing)}")
        extra = sorted(set(self.result) - set(wanted))
        if extra:
            problems.append(f"without a place in the policy {_some(extra)}")
        if problems:
            raise UserError(
                f"{self.file}: {'; '.join(problems)}; the weights come from another release of {self.origin} "
                "than those this command knows, or the config or --base_vlm is not theirs"
            )
        for name, tensor in self.result.items():
            if tensor.shape != wanted[name].shape:
                raise UserError(
                    f"{self.file}: '{name}' becomes {tuple(tensor.shape)}, the policy that the config and "
                    f"--base_vlm describe has {tuple(wanted[name].shape)}"
                )
        return self.result

    def lines(self) -> list[str]:
        """The whole report, a line a tensor."""
        return [_line(entry) for entry in self.entries]

    def counts(self) -> str:
        """How many tensors are mapped, dropped or new."""
        kinds = [entry.what for entry in self.entries]
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("mapped", "dropped", "new"))


def _line(entry: Entry) -> str:
    sources, target = " + ".join(entry.sources), entry.target
    arrow = f"{sources} -> {target}" if sources and target else sources or target
    return f"{entry.what:7} {arrow}" + (f": {entry.note}" if entry.note else "")


def _some(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"[{', '.join(names[:limit])}]{more}"
