"""Words that a config may hold for what is asked for in another way, as metadata of its fields."""

from __future__ import annotations

from vla_core.ranges import ELSEWHERE


def _launched(name: str) -> str:
    command = f"accelerate launch --config_file configs/accelerate/{name}.yaml --num_processes N -m vla_train"
    return f"DeepSpeed is started by {command} ..., without this key"


ENGINES = {
    ELSEWHERE: {
        "zero1": _launched("zero1"),
        "zero2": _launched("zero2"),
        "zero3": _launched("zero3"),
        "deepspeed": _launched("zero2"),
        "ddp": "torchrun --nproc_per_node N -m vla_train ... is DDP without this key",
        "fsdp": "write fsdp2",
    }
}
"""Of ``trainer.sharding``."""
PRECISIONS = {
    ELSEWHERE: {
        "fp16": "bf16 has as many bits, and the range of fp32",
        "fp8": "set trainer.fp8: linears, with precision: bf16",
        "amp": "write autocast",
    }
}
"""Of ``trainer.precision``."""
