"""A rank that ends while threads of its process group still hold tensors: exchanges that nobody waits for."""

from __future__ import annotations

import torch
from torch import distributed
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine

if __name__ == "__main__":
    make_engine(TrainerConfig(device="cpu"))
    for _ in range(500):
        distributed.all_reduce(torch.ones(2000), async_op=True)
