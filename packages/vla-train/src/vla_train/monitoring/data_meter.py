"""Losses and counts of each data set, gathered without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vla_data.mixture import Mixture

from vla_train.engine import Engine


class DataMeter:
    """What each data set of a mixture gave since the last :meth:`read`.

    Args:
        labels: their names; with a single one nothing is gathered, for its figures are those of the run.
        mixture: the order, for the epochs; None: there are no robots.
        engine: for the sum over ranks.
    """

    def __init__(self, labels: Sequence[str], mixture: Mixture | None, engine: Engine) -> None:
        self.labels, self.mixture, self.engine = labels, mixture, engine
        self.on = len(labels) > 1
        self._numbers = torch.arange(len(labels), device=engine.device)
        self._sums = torch.zeros(len(labels), 3, device=engine.device)

    def see(self, source: Tensor | None, rows: Tensor | None) -> None:
        """Rows of a micro-batch.

        Args:
            source: long ``[B]``, the data set of each row.
            rows: float32 ``[B, 2]``, loss and what it counts (:data:`vla_core.features.ROWS`); None: the head
                tells no rows apart.
        """
        if not self.on or source is None:
            return
        if rows is None:
            rows = torch.zeros(len(source), 2, device=source.device)
        # A row that is not finite is reported elsewhere, and would hide all others.
        rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
        values_B3 = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self._sums += (source == self._numbers[:, None]).float() @ values_B3

    def read(self, position: int) -> dict[str, float]:
        """``data/LABEL/loss``, ``samples`` (both since the last call) and ``epochs`` (since the run's start).

        Called by all ranks; ``position``: samples drawn so far by all of them.
        """
        if not self.on or self.mixture is None:
            return {}
        total = self.engine.sum(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        out = {}
        drawn = self.mixture.counts(position)
        for label, (loss, count, rows), n, size in zip(
            self.labels, total, drawn, self.mixture.sizes, strict=True
        ):
            out[f"data/{label}/samples"] = rows
            out[f"data/{label}/epochs"] = n / size
            if count:
                out[f"data/{label}/loss"] = loss / count
        return out
