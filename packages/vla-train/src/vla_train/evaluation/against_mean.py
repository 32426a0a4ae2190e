"""Whether a policy beats who always answers the mean action, dim by dim, said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ERROR, MEAN = "val/mae/", "val/mean_mae/"
"""Prefixes of the metrics of a dim, in real units: the policy's error, and the mean action's."""

_NOTHING = 1e-9  # an error of the mean action below that: the dim is constant


@dataclass(frozen=True)
class AgainstMean:
    """Dims where the policy's error is below, and not below, the mean action's; ``constant`` never change."""

    better: Sequence[str]
    worse: Sequence[str]
    constant: Sequence[str]

    def __str__(self) -> str:
        n = len(self.better) + len(self.worse)
        dims = "1 dim" if n == 1 else f"{n} dims"
        still = f" (constant: {', '.join(map(_said, self.constant))})" if self.constant else ""
        if not n:
            return f"no dim of the held-out actions changes{still}"
        if not self.worse:
            where = "the only dim" if n == 1 else f"all {dims}"
            return f"better than always predicting the mean action in {where}{still}"
        listed = ", ".join(map(_said, self.worse))
        return f"worse than always predicting the mean action in {len(self.worse)} of {dims}: {listed}{still}"


def against_mean(metrics: Mapping[str, float]) -> AgainstMean | None:
    """Of one validation; None where it does not tell (an older run, or one without validation)."""
    better, worse, constant = [], [], []
    for key, blind in metrics.items():
        dim = key.removeprefix(MEAN)
        error = metrics.get(ERROR + dim)
        if dim == key or error is None:
            continue
        if blind < _NOTHING:
            constant.append(dim)
        # NaN is no improvement.
        elif error < blind:
            better.append(dim)
        else:
            worse.append(dim)
    found = AgainstMean(better, worse, constant)
    return found if better or worse or constant else None


def in_words(step: int, metrics: Mapping[str, float]) -> str:
    """A validation in one or two lines."""
    loss, error, mean = (metrics[f"val/{name}"] for name in ("loss", "action_mae", "mean_action_mae"))
    text = f"step {step}  validation: loss {loss:.4f}, action error {error:.4f} (mean action: {mean:.4f})"
    beaten = against_mean(metrics)
    return text if beaten is None else f"{text}\n  {beaten}"


def _said(dim: str) -> str:
    return dim.replace("_", " ")
