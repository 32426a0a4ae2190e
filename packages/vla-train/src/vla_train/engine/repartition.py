"""ZeRO-1 and 2 over another number of processes: each takes its rows out of the shares of all that wrote.

DeepSpeed's own reader wants as many processes as there are shares. A group's masters and moments are one flat
vector, cut into equal parts, the last one padded: so is every share's place in it known. One share after the
other is read, so that a process never has more than one beside its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor
from vla_core.errors import UserError


@contextmanager
def any_world(engine: Any) -> Iterator[None]:
    """Within the block ``load_checkpoint`` of DeepSpeed's engine (stage 1, 2) reads any number of shares."""
    own = engine._load_zero_checkpoint

    def load(load_dir: str, tag: str, load_optimizer_states: bool = True) -> Any:
        if engine.loaded_checkpoint_dp_world_size == engine.seq_dp_world_size:
            return own(load_dir, tag, load_optimizer_states=load_optimizer_states)
        names = engine._get_all_zero_checkpoint_names(load_dir, tag, engine.bfloat16_enabled())
        shares = (engine.checkpoint_engine.load(name, map_location="cpu") for name in names)
        sizes = [group.numel() for group in engine.optimizer.single_partition_of_fp32_groups]
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        state = own_share((share[OPTIMIZER_STATE_DICT] for share in shares), sizes, rank)
        engine.optimizer.load_state_dict(
            [state] * world,
            load_optimizer_states=load_optimizer_states,
            load_from_fp32_weights=engine.zero_load_from_fp32_weights(),
        )
        return True

    engine._load_zero_checkpoint = load
    try:
        yield
    finally:
        del engine._load_zero_checkpoint


def own_share(shares: Iterable[Mapping[str, Any]], sizes: list[int], rank: int) -> dict[str, Any]:
    """That of one rank.

    Args:
        shares: of all ranks that wrote, in order.
        sizes: numbers of a rank's part of each group now, padding included.
        rank: whose.

    Raises:
        UserError: parameters were padded one by one.
    """
    facts: Mapping[str, Any] = {}
    begins = [0] * len(sizes)
    masters = [torch.zeros(size) for size in sizes]
    moments: dict[int, dict[str, Any]] = {}
    for share in shares:
        if any(map(any, share.get(PARAM_ALIGNMENT_PADDINGS, ()))):
            raise UserError(
                "trainer.resume: a state with DeepSpeed's zero_optimization.parameter_alignment is of one "
                "number of processes; go on with as many"
            )
        facts = facts or share
        for i, (size, saved) in enumerate(zip(sizes, share[SINGLE_PARTITION_OF_FP32_GROUPS], strict=True)):
            place = begins[i] - rank * size
            _into(masters[i], saved, place)
            mine = moments.setdefault(i, {})
            for key, value in share[BASE_OPTIMIZER_STATE]["state"][i].items():
                if not isinstance(value, Tensor) or not value.ndim:
                    mine.setdefault(key, value)  # the count of steps
                    continue
                there = mine.setdefault(key, torch.zeros(size, dtype=value.dtype))
                _into(there, value[: saved.numel()], place)
            begins[i] += saved.numel()
    base = {**facts[BASE_OPTIMIZER_STATE], "state": moments}
    return {**facts, BASE_OPTIMIZER_STATE: base, SINGLE_PARTITION_OF_FP32_GROUPS: masters}


def _into(part: Tensor, piece: Tensor, place: int) -> None:
    """Copy what of ``piece``, which begins at ``place`` of ``part``, lies in it."""
    low, high = max(0, place), min(part.numel(), place + piece.numel())
    if low < high:
        part[low:high] = piece[low - place : high - place]
