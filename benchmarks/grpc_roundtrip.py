"""gRPC round trip without the model: a policy that answers zeros, in a process of its own, over loopback.

    uv run benchmarks/grpc_roundtrip.py [--calls 2000] [--repeats 5] [--encodings raw png jpeg]

Images are random noise, the worst case of PNG and JPEG. Percentiles are of all calls of one repeat;
the table shows the median over the repeats.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.types import ActionChunk, Observation
from vla_serve import PolicyClient, PolicyServer
from vla_serve.messages.codec import Encoding

SPEC = RobotSpec(
    ObservationSpec(
        (CameraSpec("front", 224, 224), CameraSpec("wrist", 224, 224)), (GroupSpec("joints", 7, "rad"),)
    ),
    ActionSpec((GroupSpec("joints", 7, "rad"),), horizon=16, control_hz=10.0),
)


class ZeroPolicy:
    """Costs nothing."""

    framework = "Zero"
    specs = {"default": SPEC}  # noqa: RUF012

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int], steps: int | None = None
    ) -> list[ActionChunk]:
        """Zeros ``[16, 7]``."""
        return [ActionChunk(np.zeros((16, 7), np.float32), SPEC.action) for _ in observations]


def serve(pipe: Connection) -> None:
    """Serve until told to stop."""
    with PolicyServer(ZeroPolicy()) as server:
        pipe.send(server.address)
        pipe.recv()


def measure(address: str, encoding: Encoding, calls: int) -> dict[str, float]:
    """Percentiles of one repeat, in milliseconds."""
    rng = np.random.default_rng(0)
    images = {c.name: rng.integers(0, 256, (224, 224, 3), np.uint8) for c in SPEC.observation.cameras}
    observation = Observation(images, "pick up the cup", np.zeros(7, np.float32))
    trips, servers = [], []
    with PolicyClient(address, observation_spec=SPEC.observation, encoding=encoding) as client:
        for i in range(calls + 100):
            client.predict(observation, seed=i)
            assert client.timings is not None
            if i >= 100:
                trips.append(client.timings.round_trip_ms)
                servers.append(client.timings.server_ms)
    p50, p90, p99 = np.percentile(trips, [50, 90, 99])
    return {"p50": p50, "p90": p90, "p99": p99, "server p50": float(np.median(servers))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--encodings", nargs="+", default=["raw", "png", "jpeg"])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    address = ours.recv()
    print("| 2 x 224 x 224 | p50 ms | p90 ms | p99 ms | of which server, p50 ms |")
    print("|---|---|---|---|---|")
    for encoding in args.encodings:
        calls = args.calls if encoding == "raw" else max(1, args.calls // 10)
        repeats = [measure(address, encoding, calls) for _ in range(args.repeats)]
        cells = [f"{statistics.median(r[key] for r in repeats):.2f}" for key in repeats[0]]
        print(f"| {encoding} ({args.repeats} x {calls} calls) | {' | '.join(cells)} |", flush=True)
    ours.send(None)
    process.join()


if __name__ == "__main__":
    main()
