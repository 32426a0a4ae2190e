"""The quickstart's policy on a CPU: batches and a measured number of threads against one eager row a call.

    python benchmarks/serve/cpu.py [--rounds 3] [--seconds 8]

Two servers, each a process of its own, take turns under the same clients (of this process): the one as
``vla-serve`` runs it, and one that answers a row a call with torch's default threads. Random weights of the
shapes of configs/quickstart.yaml. Needs the repository, and nobody else on the machine for absolute figures:
the ratios of a round are what counts where there is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KINDS = ("eager", "served")


class OneRow:
    """A policy that is called with one observation at a time, and brings the threads that torch gives it."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.specs, self.framework = policy, policy.specs, policy.framework

    def act(self, observations: Sequence[Any], seeds: Sequence[int], steps: int | None = None) -> Any:
        """See :class:`vla_serve.engine.policy.ActingPolicy`."""
        return self._policy.act(observations, seeds, steps)


def checkpoint(folder: Path) -> Path:
    """The quickstart's policy before its first step."""
    from vla_train.composition import compose
    from vla_train.presets import load_run_tree

    words = [f"run_root_dir={folder}", "trainer.device=cpu", "trainer.evaluation.tasks=[]"]
    composed = compose(load_run_tree([ROOT / "configs" / "quickstart.yaml"], words))
    return Path(composed.policy.save(folder / "steps_0", step=0))


def serve(pipe: Connection, kind: str, path: Path) -> None:
    """A server, which says how much CPU time it has used when it is asked."""
    from vla_core.policy import VLAPolicy
    from vla_serve import PolicyServer
    from vla_serve.loading import CheckpointLoader

    policy = CheckpointLoader("cpu")(path) if kind == "served" else OneRow(VLAPolicy.from_pretrained(path))
    with PolicyServer(policy, max_batch=8) as server:
        pipe.send(server.address)
        while pipe.recv() == "cpu":
            pipe.send(time.process_time())


def measure(pipe: Connection, address: str, clients: int, seconds: float) -> dict[str, float]:
    """Closed-loop clients of one server."""
    from vla_core.testing import make_observation
    from vla_serve import PolicyClient
    from vla_serve.probing.load import closed_loop

    def cpu() -> float:
        pipe.send("cpu")
        return float(pipe.recv())

    with PolicyClient(address) as client:
        seen = [make_observation(client.contract, i) for i in range(clients)]
    before = cpu()
    outcome = closed_loop(address, seen, seconds, timeout_s=60)
    used = cpu() - before
    answers = max(1, len(outcome.latencies_ms))
    return {
        "chunks_per_s": outcome.rate,
        "p50_ms": outcome.percentile(50),
        "p99_ms": outcome.percentile(99),
        "server_cpu_ms_per_chunk": 1000 * used / answers,
    }


def main() -> None:
    """Print a line of JSON for each turn, and the medians of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, servers, addresses = {}, [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(Path(folder))
        for kind in KINDS:
            pipes[kind], theirs = context.Pipe()
            servers.append(context.Process(target=serve, args=(theirs, kind, path)))
            servers[-1].start()
            addresses[kind] = pipes[kind].recv()
        ratios: dict[tuple[int, str], list[float]] = {}
        for number in range(args.rounds):
            for clients in args.clients:
                found = {}
                for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                    found[kind] = measure(pipes[kind], addresses[kind], clients, args.seconds)
                    rounded = {name: round(value, 1) for name, value in found[kind].items()}
                    print(
                        json.dumps({"round": number, "server": kind, "clients": clients, **rounded}),
                        flush=True,
                    )
                for name, value in found["served"].items():
                    ratios.setdefault((clients, name), []).append(value / found["eager"][name])
        for (clients, name), values in ratios.items():
            each = [round(value, 2) for value in values]
            print(f"{clients} clients, {name}: served / eager {statistics.median(values):.2f} {each}")
        for kind, server in zip(KINDS, servers, strict=True):
            pipes[kind].send("end")
            server.join()


if __name__ == "__main__":
    main()
