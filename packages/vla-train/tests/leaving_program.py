"""A rank that ends while threads of its process group still hold tensors: exchanges that nobody waits for.

``alone``: the second rank ends in an exchange to which the first never comes.
"""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import distributed
from vla_train.config import TrainerConfig
from vla_train.engine import leaving, make_engine

if __name__ == "__main__":
    leaving.LONGEST_S = 1.0 if "alone" in sys.argv else leaving.LONGEST_S
    make_engine(TrainerConfig(device="cpu"))
    if "alone" in sys.argv:
        distributed.barrier()
        if os.environ["RANK"] == "0":
            time.sleep(1000)
        distributed.all_reduce(torch.ones(2000), async_op=True)
        sys.exit(leaving.leave_with(2))
    for _ in range(500):
        distributed.all_reduce(torch.ones(2000), async_op=True)
