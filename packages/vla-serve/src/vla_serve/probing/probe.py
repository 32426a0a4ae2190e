"""What a server does with made-up observations: how long it takes, and whether equal ones are answered alike.

Shapes: T action steps, A action dims.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vla_core.types import Float, Observation

from vla_serve.clients.client import PolicyClient, Timings
from vla_serve.clients.errors import PolicyBusy
from vla_serve.probing.made_up import made_up, variants

PARTS = ("round_trip", "queue", "decode", "prepare", "model", "finish", "server")
"""Of an answer's time, as :class:`Timings` names them."""


@dataclass
class Load:
    """Answers to closed-loop clients.

    Args:
        seconds: from the first request to the last answer.
        timings: of each answer.
        refused: requests that the server was too busy for; each was asked again.
    """

    seconds: float = 0.0
    timings: list[Timings] = field(default_factory=list)
    refused: int = 0

    def of(self, part: str) -> list[float]:
        """Milliseconds of a part (:data:`PARTS`), or ``batch`` or ``queue_depth``, of each answer."""
        name = part if part in ("batch", "queue_depth") else f"{part}_ms"
        return [float(getattr(timing, name)) for timing in self.timings]


def difference(a_TA: Float, b_TA: Float) -> float:
    """Largest absolute difference of two chunks."""
    return float(np.max(np.abs(a_TA - b_TA)))


def repeats(address: str, options: dict[str, Any], seed: int, denoise_steps: int | None) -> list[float]:
    """How far the answers to equal requests are from the first: again in its session, and in another one."""
    with PolicyClient(address, **options) as first, PolicyClient(address, **options) as other:
        observation = made_up(first.contract.observation, seed, inputs=first.camera_inputs)
        answers = [
            client.predict(observation, seed=seed, denoise_steps=denoise_steps).actions
            for client in (first, first, other)
        ]
    return [difference(answer, answers[0]) for answer in answers[1:]]


def influences(client: PolicyClient, seed: int, denoise_steps: int | None) -> dict[str, float]:
    """What is changed in an observation -> how far the answer moves, with the same noise."""
    spec, inputs = client.contract.observation, client.camera_inputs

    def ask(observation: Observation) -> Float:
        return client.predict(observation, seed=seed, denoise_steps=denoise_steps).actions

    first = ask(made_up(spec, seed, inputs=inputs))
    return {name: difference(ask(changed), first) for name, changed in variants(spec, seed, inputs).items()}


def load(
    address: str, options: dict[str, Any], clients: int, requests: int, seed: int, denoise_steps: int | None
) -> Load:
    """``clients`` sessions, each of which asks ``requests`` times, as soon as it has an answer."""
    found, over = Load(), threading.Event()

    def drive(number: int) -> tuple[Sequence[Timings], int]:
        timings: list[Timings] = []
        refused = 0
        with PolicyClient(address, **options) as client:
            observation = made_up(client.contract.observation, seed + number, inputs=client.camera_inputs)
            while len(timings) < requests and not over.is_set():
                try:
                    client.predict(observation, seed=seed + len(timings), denoise_steps=denoise_steps)
                except PolicyBusy as error:
                    refused += 1
                    over.wait(error.retry_after_s)
                    continue
                assert client.timings is not None
                timings.append(client.timings)
        return timings, refused

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        try:
            for timings, refused in pool.map(drive, range(clients)):
                found.timings += timings
                found.refused += refused
        finally:
            over.set()  # interrupted, or one of them failed: the others need not go on
        found.seconds = time.perf_counter() - start
    return found
