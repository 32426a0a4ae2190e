"""A checkpoint as a policy that a server runs: device, number type, threads, graphs, digests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from vla_core.checkpoint import read_checkpoint
from vla_core.errors import UserError
from vla_core.files import sha256_of
from vla_core.graphs import GraphedPolicy, compile_blocks
from vla_core.heap import settle_heap
from vla_core.packing import pack
from vla_core.policy import VLAPolicy
from vla_core.threads import fastest_thread_count

from vla_serve.engine.manager import Loaded
from vla_serve.engine.shelf import Digests
from vla_serve.fp8 import check, round_linears

log = logging.getLogger("vla_serve.server")


@dataclass
class CheckpointLoader:
    """Loads checkpoints, all in the same way.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights.
        threads: of the CPU, for the model; None: the fastest number, measured with the first policy; beside a
            GPU one.
        cache_mib: of geometry features; None: as trained.
        compile: a GPU's ``blocks``, or ``off``.
        graphs: capture CUDA graphs on a GPU.
        fp8: linear layers in float8 (:mod:`vla_serve.fp8`).
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int | None = None
    cache_mib: int | None = None
    compile: Literal["off", "blocks"] = "off"
    graphs: bool = True
    fp8: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads: must be at least 1, got {self.threads}")
        _check_device(self.device)
        if self.fp8:
            check(self.device, self.dtype)
        self._fastest: int | None = None

    @staticmethod
    def of(
        device: str,
        bfloat16: bool,
        threads: int | None,
        cache_mib: int | None,
        compile: Literal["off", "blocks"],
        graphs: bool,
        fp8: bool,
    ) -> CheckpointLoader:
        """For who has no torch at hand."""
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        return CheckpointLoader(device, dtype, threads, cache_mib, compile, graphs, fp8)

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def __call__(self, path: Path) -> Loaded:
        """The policy; :class:`UserError` when there is none at ``path``."""
        with ThreadPoolExecutor(1) as beside:
            digests = beside.submit(digests_of, path)
            policy = VLAPolicy.from_pretrained(path, self.device, self.dtype, self.cache_mib)
            known = digests.result()
        if self._cuda:
            pack(policy.model)
        if self.fp8:
            log.info("%s", round_linears(policy))
        if self.compile == "blocks":
            log.info("compiling %d blocks, once for each batch size", compile_blocks(policy.model))
        steps = policy.model.head.traits.steps
        loaded = Loaded(policy, known, steps, self.on_thread, self.on_warm, on_gone=self._on_gone)
        if self._cuda and self.graphs:
            graphed = GraphedPolicy(policy)
            return replace(loaded, policy=graphed, on_ready=graphed.graphs.seal)
        return loaded

    def on_thread(self, kind: str) -> None:
        """First in each thread of an engine: the model's computes with as many as it should, others alone."""
        if self._cuda and kind == "model":
            torch.cuda.set_device(self.device if ":" in self.device else 0)
        # Threads that prepare do small work, many at a time: none of them brings a team of its own. Nor does
        # the one that feeds a GPU: to wake a team up takes longer than to copy what a row has.
        threads = self.threads or self._fastest or (1 if self._cuda else torch.get_num_threads())
        torch.set_num_threads(threads if kind == "model" else 1)

    def on_warm(self, run: Callable[[], object]) -> None:
        """Once, with what runs a row: choose the number of threads on a CPU by measurement."""
        if self.threads is None and not self._cuda and self._fastest is None:
            # Not again for a later policy: beside one that answers, nothing can be measured.
            self._fastest = fastest_thread_count(run)
            log.info("threads %s", self._fastest)

    def _on_gone(self) -> None:
        settle_heap()
        if self._cuda:
            torch.cuda.empty_cache()


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's own words list devices that nothing here runs on
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: no CUDA device here; use --device cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: there are cuda:0 to cuda:{count - 1}")


def digests_of(path: Path) -> Digests:
    """Of a checkpoint's weights and statistics; reads all of both."""
    stored = read_checkpoint(path)
    statistics = sha256_of(stored.directory / "norm_stats.json")
    return Digests(sha256_of(stored.weights), statistics, stored.data_digest, str(path))
