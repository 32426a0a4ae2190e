"""DeepSpeed ZeRO: optimizer state (1), gradients (2) and parameters (3) are split over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.constants import MODEL_NAME
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from vla_core.model import VLAModel

from vla_train.engine.base import WHOLE, Copy, Engine, save_objects
from vla_train.engine.forwarding import run_as_forward
from vla_train.engine.gathering import Part, gathered
from vla_train.engine.shares import keeping_shares


class DeepSpeed(Engine):
    """ZeRO by accelerate's plugin. It accumulates, clips and steps inside ``backward``.

    Args:
        accelerator, accumulation: as for every engine.
        batch_size: samples of one micro-batch and rank.
        clip_norm: largest gradient norm (0: no clipping).
        bucket_mb: megabytes that are exchanged at once.
    """

    def __init__(
        self, accelerator: Accelerator, accumulation: int, batch_size: int, clip_norm: float, bucket_mb: int
    ) -> None:
        plugin: Any = accelerator.state.deepspeed_plugin
        # Its own config decides: it gets ours.
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=batch_size,
            gradient_accumulation_steps=accumulation,
            gradient_clipping=clip_norm,
        )
        stage = int(plugin.zero_stage)
        low = accelerator.mixed_precision == "bf16"
        for key, value in _zero(stage, bucket_mb, 2 if low else 4).items():
            plugin.deepspeed_config["zero_optimization"].setdefault(key, value)
        # Its clock has the host wait for the device at both ends of a step, for a rate that nobody reads.
        plugin.deepspeed_config.setdefault("timers", {"throughput": {"enabled": False}})
        if low:
            # It would look for what is not finite in each gradient, the host would wait for the answer, and
            # the step be left out. The norm tells the guard, and the run ends.
            plugin.deepspeed_config.setdefault("bf16", {}).setdefault("check_grad_overflow", False)
        # At stage 3 transformers would split its modules while they are made, already rounded, and DeepSpeed
        # would then take ours for split ones as well. `split` has all of them split.
        unset_hf_deepspeed_config()
        # The average is ours, and so whole.
        spread = ("masters", "moments", "gradients", "weights")[: stage + 1] if stage else ()
        super().__init__(
            accelerator,
            accumulation,
            name=f"DeepSpeed ZeRO-{stage}",
            shards=stage == 3,
            has_masters=True,
            spreads=spread,
        )
        self.uses = frozenset({"bucket_mb"})
        self.gathers_inside = self.early_gradients = stage == 3
        if stage == 3:
            self.most_whole = int(plugin.deepspeed_config["zero_optimization"]["stage3_max_live_parameters"])
        places = (plugin.offload_optimizer_device, plugin.offload_param_device)
        self.offloads = any(place not in (None, "none") for place in places)

    def sharing(self) -> AbstractContextManager[Any]:
        """See the base; at stage 3 each rank keeps its rows until DeepSpeed has its part."""
        if self.shards and self.world > 1:
            return keeping_shares(self.rank, self.world, self.device)
        return nullcontext()

    def split(self, model: nn.Module) -> None:
        """See the base; at stage 3 parameter by parameter."""
        if self.shards:
            from vla_train.engine.partitioning import partition

            partition(model, self.accelerator.state.deepspeed_plugin.deepspeed_config, self.device)
            if isinstance(model, VLAModel):
                run_as_forward(model.head, "sample")

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See the base."""
        from vla_train.engine.deepspeed_writer import check_writer
        from vla_train.engine.lean_zero import make_lean

        super().prepare(model, optimizer)
        check_writer(self.module.checkpoint_engine)
        make_lean(self.module.optimizer)

    def update(self, clip_norm: float, leave_out: bool = False) -> Any:
        """See the base; all is done by now, and the norm stays on the device."""
        return self.module.get_global_grad_norm() if self.accelerator.sync_gradients else None

    def numel(self, parameter: Tensor) -> int:
        """See the base; at stage 3 a parameter between its uses is empty."""
        held: Any = parameter
        return int(held.ds_numel) if hasattr(held, "ds_numel") else parameter.numel()

    def load(self, folder: Path) -> None:
        """See the base; whatever number of processes wrote it."""
        from vla_train.engine import repartition, repartition_parameters

        of = repartition_parameters if self.shards else repartition
        with of.any_world(self.module):
            super().load(folder)

    def save(self, folder: Path) -> None:
        """See the base; what the ranks write, each writes by itself."""
        self._kept(folder, None)()

    def save_later(self, folder: Path, copy: Copy, channel: ProcessGroup | None) -> Callable[[], None]:
        """See the base; what DeepSpeed hands to its writer is kept in its stead."""
        return self._kept(folder, copy)

    def _kept(self, folder: Path, copy: Copy | None) -> Callable[[], None]:
        """What writes all but the random streams, which are written now."""
        from vla_train.engine.deepspeed_writer import Kept

        engine, kept = self.module, Kept(copy)
        own, engine.checkpoint_engine = engine.checkpoint_engine, kept
        engine._copy_recovery_script = _nothing
        try:
            # As accelerate names it.
            engine.save_checkpoint(str(folder), MODEL_NAME, save_latest=False)
        finally:
            engine.checkpoint_engine = own
            del engine._copy_recovery_script
        self._save_streams(folder)
        objects = self._copied_objects(copy or (lambda thing, name: thing))

        def write() -> None:
            kept.write(own)
            if self.is_main:
                engine._copy_recovery_script(str(folder))
                (folder / "latest").write_text(MODEL_NAME)
            save_objects(objects, folder)

        return write

    def state(self, copy: Copy | None = None) -> Mapping[str, Tensor]:
        """At stage 3 the parts are gathered parameter by parameter, on the first rank's CPU."""
        if not self.shards:
            return super().state(copy)
        from deepspeed.runtime.zero import GatheredParameters

        state: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            with GatheredParameters([parameter]):
                if self.is_main:
                    value = parameter.detach()
                    state[name] = copy(value, f"{WHOLE}.{name}") if copy else value.cpu().clone()
        if self.is_main:
            buffers = _persistent_buffers(self.model)
            state.update(copy(buffers, WHOLE) if copy else buffers)
        return state

    def state_later(self, copy: Copy, channel: ProcessGroup | None) -> Callable[[], Mapping[str, Tensor]]:
        """See the base; at stage 3 each rank copies its part of every parameter."""
        if not self.shards or self.offloads:
            return super().state_later(copy, channel)
        parts: dict[str, Part | Tensor] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            held: Any = parameter
            own = copy(held.ds_tensor.detach(), f"{WHOLE}.{name}")
            parts[name] = Part(own, held.ds_tensor.ds_numel, tuple(held.ds_shape))
        parts.update(copy(_persistent_buffers(self.model), WHOLE))
        return lambda: gathered(parts, channel, self.is_main)


def _nothing(save_path: str) -> None:
    """In the place of what copies DeepSpeed's scripts, while ranks wait for each other."""


def _zero(stage: int, bucket_mb: int, width: int) -> dict[str, Any]:
    """What DeepSpeed is told where its user says nothing; ``width``: bytes of a number."""
    numbers = bucket_mb * 2**20 // width
    shared = {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": numbers}
    if stage == 3:
        # DeepSpeed's own, said here since the estimate of memory counts with it.
        return {**shared, "stage3_max_live_parameters": 1_000_000_000}
    # Its reduce-scatter is an all-reduce of parts that are copied together and apart, gradient by gradient.
    return {**shared, "allgather_bucket_size": numbers, "reduce_scatter": False}


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    with torch.no_grad():
        return {name: value for name, value in model.state_dict().items() if name in names}
