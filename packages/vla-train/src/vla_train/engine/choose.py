"""Which engine a process runs under: what the launcher's environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, DistributedType
from vla_core.errors import ConfigError, UserError

from vla_train.config import TrainerConfig
from vla_train.engine.base import Engine
from vla_train.engine.ddp import DDP
from vla_train.engine.leaving import leave_in_order
from vla_train.engine.local import Local


def check_launch(env: Mapping[str, str]) -> None:
    """What a launcher was asked for is what runs.

    Raises:
        UserError: accelerate was to start several processes and started one, as it does without GPUs.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in env
    if launched and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does where there is no "
            "GPU; use torchrun --nproc_per_node N -m vla_train ... (or unset MASTER_ADDR for one process)"
        )


def check_met(env: Mapping[str, str], running: int) -> None:
    """All processes that a launcher started run together.

    Raises:
        UserError: each runs alone, and all would write to one folder.
    """
    if (started := int(env.get("WORLD_SIZE", "1"))) != running:
        raise UserError(
            f"{started} processes were started, and this one runs with {running}; where there is no GPU for "
            "each, set trainer.device=cpu"
        )


def _shards(settings: TrainerConfig, env: MutableMapping[str, str]) -> bool:
    """Whether parameters are to be spread by FSDP2; accelerate's own plugin for it is switched off."""
    if env.get("ACCELERATE_USE_FSDP") != "true":
        return settings.sharding == "fsdp2"
    if env.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "accelerate's FSDP of version 1 is not supported; set fsdp_version: 2 "
            "(configs/accelerate/fsdp2.yaml), or use DeepSpeed (configs/accelerate/zero2.yaml)"
        )
    # It would wrap by class names, and exchange the optimizer's parameters.
    del env["ACCELERATE_USE_FSDP"]
    return True


def make_engine(settings: TrainerConfig) -> Engine:
    """The engine of this process.

    Raises:
        ConfigError: a device that is not there or that would leave DeepSpeed out in silence.
        UserError: another number of processes than the launcher was asked for.
    """
    check_launch(os.environ)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if settings.device == "cpu" and deepspeed:
        raise ConfigError(
            "trainer.device: cpu would leave DeepSpeed out in silence; use trainer.device=auto "
            "(with the environment variable DS_ACCELERATOR=cpu, DeepSpeed itself runs on the CPU)"
        )
    sharding = _shards(settings, os.environ)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device is 'cuda', and torch sees no CUDA device; use 'auto' or 'cpu'")
    accumulation = settings.gradient_accumulation_steps
    if os.environ.get("WORLD_SIZE", "1") != "1":
        leave_in_order()
    # accelerate keeps device and precision for the life of a process; here each run has its own.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if deepspeed and not torch.accelerator.is_available() and not PartialState._shared_state:
        # Left to itself accelerate counts one process where there is no GPU.
        PartialState(backend="gloo")
    # DeepSpeed takes this word for weights in bf16.
    autocast = settings.precision == "autocast" or (deepspeed and settings.precision == "bf16")
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="bf16" if autocast else "no",
        gradient_accumulation_steps=accumulation,
        # The default would move batches by looking inside them; ours move themselves.
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True,
                # Tables of positions and the like, which no step changes.
                broadcast_buffers=False,
                bucket_cap_mb=settings.bucket_mb,
            )
        ],
    )
    check_met(os.environ, accelerator.num_processes)
    kind = accelerator.distributed_type
    if sharding:
        if kind in (DistributedType.NO, DistributedType.DEEPSPEED):
            raise ConfigError(
                "trainer.sharding: fsdp2 spreads parameters over several processes, and this is "
                f"{'DeepSpeed' if kind == DistributedType.DEEPSPEED else 'one'}; start it with torchrun "
                "--nproc_per_node N -m vla_train ..., or leave it out"
            )
        from vla_train.engine.fsdp2 import FSDP2

        return FSDP2(
            accelerator,
            accumulation,
            reshard=settings.reshard,
            prefetch=settings.prefetch,
            gather_mb=settings.gather_mb,
        )
    if kind == DistributedType.DEEPSPEED:
        from vla_train.engine.deepspeed import DeepSpeed

        return DeepSpeed(
            accelerator, accumulation, settings.batch_size, settings.clip_norm, settings.bucket_mb
        )
    if kind == DistributedType.NO:
        return Local(accelerator, accumulation)
    return DDP(accelerator, accumulation)
