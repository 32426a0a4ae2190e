"""A rank that ends while threads of its process group still hold tensors: exchanges that nobody waits for.

``alone``: the second rank ends in an exchange to which the first never comes, and nobody reads what it says.
``slow``: the program has more to do at its end than its groups may take.
"""

from __future__ import annotations

import atexit
import os
import sys
import time

import torch
from torch import distributed
from vla_train.config import TrainerConfig
from vla_train.engine import leaving, make_engine

if __name__ == "__main__":
    leaving.LONGEST_S = 1.0 if sys.argv[1:] else leaving.LONGEST_S
    if "slow" in sys.argv:
        # Registered first, called last.
        atexit.register(time.sleep, 2.5)
    make_engine(TrainerConfig(device="cpu"))
    if "alone" in sys.argv:
        distributed.barrier()
        if os.environ["RANK"] == "0":
            time.sleep(1000)
        distributed.all_reduce(torch.ones(2000), async_op=True)
        read, write = os.pipe()
        os.close(read)
        sys.stdout = os.fdopen(write, "w")
        print("to nobody")
        sys.exit(leaving.leave_with(2))
    for _ in range(500):
        distributed.all_reduce(torch.ones(2000), async_op=True)
