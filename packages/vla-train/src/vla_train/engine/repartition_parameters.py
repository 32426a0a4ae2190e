"""ZeRO-3 over another number of processes: each takes its part of every parameter out of what all wrote.

DeepSpeed's own reader wants as many processes as there are files. Its stage 3 cuts every parameter by itself
into equal parts, the last one padded; a rank's parts of a sub-group's parameters (and of their moments) stand
one after the other in a flat vector. The order of the parameters is the optimizer's whatever the number of
processes. Where a sub-group ends is not, for its size is that of a rank's parts. One file after the other is
read, so that a process never has more than one beside its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, FROZEN_PARAM_FRAGMENTS, OPTIMIZER_STATE_DICT
from torch import Tensor
from vla_core.errors import UserError


@dataclass(frozen=True)
class Cut:
    """A parameter of ``numel`` numbers over the processes of now, of which each has ``part`` at most."""

    numel: int
    part: int

    @staticmethod
    def of(parameter: Any) -> Cut:
        """One that DeepSpeed has split."""
        return Cut(int(parameter.ds_numel), int(parameter.ds_tensor.ds_numel))

    def before(self, processes: int) -> int:
        """What each of so many processes had of it, the last one with padding."""
        return -(-self.numel // processes)

    def put(self, own: Tensor, piece: Tensor, wrote: int, rank: int) -> None:
        """Copy what of ``piece``, the part of the process ``wrote``, is ``rank``'s to its ``own [part]``."""
        begins, mine = wrote * piece.numel(), rank * self.part
        low, high = max(begins, mine), min(begins + piece.numel(), mine + self.part, self.numel)
        if low < high:
            own[low - mine : high - mine] = piece[low - begins : high - begins]


@contextmanager
def any_world(engine: Any) -> Iterator[None]:
    """Within the block ``load_checkpoint`` of DeepSpeed's engine at stage 3 reads any number of files.

    Raises:
        UserError: masters and moments that are on a disk of each process.
    """
    names, module = engine._get_all_ckpt_names, engine.load_module_state_dict
    zero, here = engine._load_zero_checkpoint, torch.distributed.get_rank()
    folder: list[Path] = []

    def all_names(load_dir: str, tag: str) -> list[str]:
        folder.append(Path(load_dir, tag))
        return [str(model_files(folder[-1])[0])] if foreign() else names(load_dir, tag)

    def foreign() -> bool:
        if len(model_files(folder[-1])) == engine.seq_dp_world_size:
            return False
        if engine.zero_nvme_offload_optimizer():
            raise UserError(
                "trainer.resume: with masters on a disk (offload_optimizer: nvme) a state is of one number "
                f"of processes; go on with {len(model_files(folder[-1]))}"
            )
        return True

    def load_module(checkpoint: dict[str, Any], **options: Any) -> None:
        if foreign() and checkpoint.get(FROZEN_PARAM_FRAGMENTS):
            files = (_read(engine, file)[FROZEN_PARAM_FRAGMENTS] for file in model_files(folder[-1]))
            cuts = {
                engine.param_names[parameter]: (Cut.of(parameter), parameter.ds_tensor)
                for parameter in engine.module.parameters()
                if engine.param_names.get(parameter) in checkpoint[FROZEN_PARAM_FRAGMENTS]
            }
            checkpoint = {**checkpoint, FROZEN_PARAM_FRAGMENTS: own_fragments(files, cuts, here)}
        module(checkpoint=checkpoint, **options)

    def load_zero(load_dir: str, tag: str, load_optimizer_states: bool = True) -> Any:
        if not foreign():
            return zero(load_dir, tag, load_optimizer_states=load_optimizer_states)
        optimizer = engine.optimizer
        files = engine._get_all_zero_checkpoint_names(load_dir, tag, engine.bfloat16_enabled())
        shares = (_read(engine, file)[OPTIMIZER_STATE_DICT] for file in files)
        cuts = [[Cut.of(parameter) for parameter in group] for group in optimizer.fp16_groups]
        belongs = [optimizer.sub_group_to_group_id[i] for i in range(len(cuts))]
        state = own_parts(shares, len(files), cuts, belongs, here)
        optimizer.load_state_dict(
            [state] * torch.distributed.get_world_size(), load_optimizer_states=load_optimizer_states
        )
        return True

    engine._get_all_ckpt_names, engine.load_module_state_dict = all_names, load_module
    engine._load_zero_checkpoint = load_zero
    try:
        yield
    finally:
        del engine._get_all_ckpt_names, engine.load_module_state_dict, engine._load_zero_checkpoint


def model_files(folder: Path) -> list[Path]:
    """One of each process that wrote, in no order of theirs."""
    return sorted(
        folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"),
        key=lambda file: int(file.name.removeprefix("zero_pp_rank_").split("_", 1)[0]),
    )


def _read(engine: Any, file: str | Path) -> Any:
    return engine.checkpoint_engine.load(str(file), map_location="cpu")


def own_fragments(
    files: Iterable[Mapping[str, Tensor]], cuts: Mapping[str, tuple[Cut, Tensor]], rank: int
) -> dict[str, Tensor]:
    """Of frozen parameters.

    Args:
        files: name -> part, of all processes that wrote, in order.
        cuts: name -> how it is cut now, and a tensor like a part.
        rank: whose.
    """
    own = {name: torch.zeros(cut.part, dtype=like.dtype) for name, (cut, like) in cuts.items()}
    for wrote, parts in enumerate(files):
        for name, (cut, _) in cuts.items():
            cut.put(own[name], parts[name].flatten(), wrote, rank)
    return own


def own_parts(
    shares: Iterable[Mapping[str, Any]],
    before: int,
    groups: Sequence[Sequence[Cut]],
    belongs: Sequence[int],
    rank: int,
) -> dict[str, Any]:
    """What the optimizer of one rank reads.

    Args:
        shares: of all processes that wrote, in order.
        before: how many those are.
        groups: the parameters of each sub-group of now, in the optimizer's order.
        belongs: the optimizer's group of each sub-group.
        rank: whose.

    Raises:
        UserError: parameters are not cut as DeepSpeed cuts them by itself.
    """
    facts: Mapping[str, Any] = {}
    masters = [torch.zeros(sum(cut.part for cut in group)) for group in groups]
    moments: dict[int, dict[str, Any]] = {i: {} for i in range(len(groups))}
    for wrote, share in enumerate(shares):
        facts = facts or share
        flats, states = share[FP32_FLAT_GROUPS], share[OPTIMIZER_STATE_DICT]["state"]
        if sum(flat.numel() for flat in flats) != sum(
            cut.before(before) for group in groups for cut in group
        ):
            raise UserError(
                "trainer.resume: the parts of this state are not equal shares of the parameters (quantized "
                f"weights or a secondary partition in DeepSpeed's file?); go on with {before} processes"
            )
        at, place = 0, 0  # sub-group and place in it, as they were written
        for i, group in enumerate(groups):
            begins = 0
            for cut in group:
                while place == flats[at].numel():
                    at, place = at + 1, 0
                piece = slice(place, place + cut.before(before))
                cut.put(masters[i][begins : begins + cut.part], flats[at][piece], wrote, rank)
                for key, value in states[at].items():
                    if not isinstance(value, Tensor) or not value.ndim:
                        moments[i].setdefault(key, value)  # the count of steps
                        continue
                    there = moments[i].setdefault(key, torch.zeros(masters[i].numel(), dtype=value.dtype))
                    cut.put(there[begins : begins + cut.part], value[piece], wrote, rank)
                place += cut.before(before)
                begins += cut.part
    saved = facts[OPTIMIZER_STATE_DICT]
    own = [
        {**group, "params": [i for i, of in enumerate(belongs) if of == number]}
        for number, group in enumerate(saved["param_groups"])
    ]
    base = {**saved, "state": moments, "param_groups": own}
    return {**facts, OPTIMIZER_STATE_DICT: base, FP32_FLAT_GROUPS: masters}
