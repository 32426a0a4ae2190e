"""Auxiliary losses in a run: what they need of the data, and their weights at a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla_core.errors import ConfigError
from vla_core.sources import Source

from vla_train.dataloading.readable import first_readable


def wants_future(model: Any, sources: Sequence[Source], batch_size: int) -> bool:
    """Whether batches must carry the observations at the chunks' ends.

    Raises:
        ConfigError: batches too small for the auxiliary, or data without the depth it needs.
    """
    auxiliary = model.auxiliary
    if auxiliary is None:
        return False
    if batch_size < auxiliary.min_rows:
        raise ConfigError(
            f"trainer.batch_size: framework.auxiliary needs at least {auxiliary.min_rows} rows a process, "
            f"got {batch_size}"
        )
    for i, source in enumerate(sources):
        observation = first_readable(source.__getitem__, len(source)).observation
        if "depth" in auxiliary.needs and set(observation.depth or {}) < set(observation.images):
            raise ConfigError(
                f"datasets.train.{i}: framework.auxiliary reads recorded depth of every camera, and this "
                "data set has none; record it, give a geometry encoder, or switch that loss off"
            )
    return "future" in auxiliary.needs


def weights_at(model: Any, step: int) -> Mapping[str, float]:
    """Auxiliary term -> weight at an optimisation step (the first is 1); empty without an auxiliary."""
    return {} if model.auxiliary is None else model.auxiliary.weights(step)
