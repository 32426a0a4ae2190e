"""What ranks lose that are not in step: sums that are waited for at once, beside sums that are used later.

    python benchmarks/train/uneven.py

Two ranks on a CPU, over gloo. The parts of a step are sleeps of random length, other ones on each rank
(forward and backward 10 to 20 ms each, update 5 to 10, data up to 5); between backward and update all wait
for the gradients. A step also asks for the counts of its batch (at its beginning, for the loss) and after
signals (at its end, for the next step): at once, as it was, or as :mod:`vla_train.engine.sum_later` does.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

ROUNDS, STEPS = 6, 60


def rank() -> None:
    """One of the two."""
    import torch
    from vla_train.config import TrainerConfig
    from vla_train.engine import make_engine
    from vla_train.engine.sum_later import Flag, SumLater

    engine = make_engine(TrainerConfig(device="cpu", threads=1))
    draw = random.Random(engine.rank)
    flag = Flag(engine.device, engine.world)
    counts, signal, gradients = torch.ones(7), torch.zeros(()), torch.ones(1000)

    def work(least: float, most: float) -> None:
        time.sleep(draw.uniform(least, most) / 1000)

    def at_once() -> None:
        for _ in range(STEPS):
            engine.sum(counts)
            work(10, 20)
            work(10, 20)
            engine.sum(gradients)
            work(5, 10)
            engine.sum(signal)
            work(0, 5)

    def later() -> None:
        answer = flag.ask(0.0)
        for _ in range(STEPS):
            shares = SumLater(counts, engine.world)
            work(10, 20)
            shares.wait()
            work(10, 20)
            engine.sum(gradients)
            work(5, 10)
            answer, before = flag.ask(0.0), answer
            before()
            work(0, 5)
        answer()

    found: dict[str, list[float]] = {"at once": [], "later": []}
    for _ in range(ROUNDS):
        for name, steps in (("at once", at_once), ("later", later)):
            engine.wait()
            began = time.perf_counter()
            steps()
            engine.wait()
            found[name].append(1e3 * (time.perf_counter() - began) / STEPS)
    if engine.is_main:
        for name, values in found.items():
            low, high = min(values), max(values)
            sys.stderr.write(f"{name}: {statistics.median(values):.1f} ms a step ({low:.1f} to {high:.1f})\n")


def main() -> None:
    """Start both, and say what the first found."""
    from vla_train.testing.ranks import run_ranks

    ranks = run_ranks([sys.executable, __file__, "rank"])
    print(ranks[0].said, end="")
    if any(rank.code for rank in ranks):
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:] == ["rank"]:
        rank()
    else:
        main()
