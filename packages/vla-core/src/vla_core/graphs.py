"""CUDA graphs of a policy's predictions: one for each shape of batch, captured before anybody waits.

An eager chunk launches thousands of kernels one by one; a graph launches them at once, and nothing in it
waits for the host. Tensors of a graph stay where they are: what comes in is copied to them, what comes out
from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vla_core.errors import UserError
from vla_core.flat import Flat, Kind, Places, stacked, tensors
from vla_core.model import VLAModel
from vla_core.policy import VLAPolicy
from vla_core.rows import Prepared, Row, most_frozen

log = logging.getLogger("vla_core.graphs")

Key: TypeAlias = tuple[int | None, Kind]
Replay: TypeAlias = Callable[[], None]

WARM_RUNS = 3
"""Before a capture: libraries choose kernels and allocate in their first runs."""


def signature(prepared: Prepared, steps: int | None) -> Key:
    """What two batches must have in common to share a graph: their kind, and the denoise steps."""
    return steps, prepared.kind if isinstance(prepared, Flat) else Kind.of(prepared)


def capture_cuda(run: Callable[[], Tensor], pool: Any) -> tuple[Replay, Tensor]:
    """``run`` as one graph: what replays it, and the tensor that it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads prepare rows meanwhile, and may pin memory: that is no mistake of this one's.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = run()
    return graph.replay, out


@dataclass
class _Captured:
    """A graph with its tensors: ``staged`` are on the host, ``inputs`` beside the model.

    Args:
        places: in ``staged``, where each row goes.
        out: what the graph writes, alone in a list.
        answer: the same, on the host.
        seen: the memory of ``answer``.
    """

    replay: Replay
    staged: list[Tensor]
    places: Places
    inputs: list[Tensor]
    out: list[Tensor]
    answer: list[Tensor]
    seen: memoryview


class GraphedModel:
    """Predictions of a model, by graphs where there is one.

    Until :meth:`seal` a batch of a new shape is captured; after it, it runs eagerly, and the log says so.
    So does one that cannot be captured. One with view keys, whose cache is read on the host, is eager.

    Args:
        model: in evaluation mode, on a GPU.
        limit: most graphs.
        capture: how a function becomes a graph.
    """

    def __init__(
        self,
        model: VLAModel,
        limit: int = 32,
        capture: Callable[[Callable[[], Tensor], Any], tuple[Replay, Tensor]] = capture_cuda,
    ) -> None:
        self.model, self._limit, self._capture = model, limit, capture
        self._graphs: dict[Key, _Captured | None] = {}
        self._sealed = False
        self._cuda = model.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None

    @property
    def count(self) -> int:
        """Graphs."""
        return sum(graph is not None for graph in self._graphs.values())

    def seal(self) -> None:
        """Capture no more: a capture takes a second in which nobody is answered."""
        self._sealed = True

    @torch.inference_mode()
    def predict(self, prepared: Prepared, steps: int | None = None) -> Tensor:
        """Normalised actions, float32 ``[B, T, A]`` on the CPU, of a batch on the CPU.

        Raises:
            UserError: more frozen steps than the head was trained for.
        """
        constraint = prepared.constraint
        self._check(None if constraint is None else constraint.n_frozen)
        cameras = prepared.batch.cameras
        if cameras is not None and cameras.view_keys is not None:
            return self._eager(prepared, steps)
        graph = self._graph(signature(prepared, steps), lambda: prepared)
        if graph is None:
            return self._eager(prepared, steps)
        return self._replay(
            graph, graph.staged, prepared.tensors if isinstance(prepared, Flat) else tensors(prepared)
        )

    @torch.inference_mode()
    def predict_rows(self, parts: Sequence[Prepared], steps: int | None = None) -> Tensor:
        """:meth:`predict` of ``Prepared.join(parts)``, which single rows are not joined for.

        Raises:
            UserError: as there.
        """
        rows = [part if isinstance(part, Flat) else Flat(part) for part in parts]
        kind = stacked(rows) if len(rows) > 1 else None
        if kind is None:
            return self.predict(Prepared.join(rows), steps)
        self._check(most_frozen(rows))
        graph = self._graph((steps, kind), lambda: Prepared.join(rows))
        if graph is None:
            return self._eager(Prepared.join(rows), steps)
        return self._replay(graph, graph.places.all, graph.places.sources(rows))

    def _check(self, n_frozen: int | None) -> None:
        longest = self.model.head.traits.longest_delay
        if longest is not None and (n_frozen or 0) > longest:
            raise UserError(
                f"previous chunk: {n_frozen} frozen steps, the head was trained for at most {longest}"
            )

    def _graph(self, key: Key, batch: Callable[[], Prepared]) -> _Captured | None:
        """The graph for batches like ``batch()``; None: they run eagerly."""
        if key not in self._graphs:
            self._graphs[key] = self._make(batch(), key[0])
        return self._graphs[key]

    def _eager(self, prepared: Prepared, steps: int | None) -> Tensor:
        here = prepared.to(self.model.device)
        return self.model.predict(here.batch, here.noise, steps, here.constraint).float().cpu()

    def _make(self, prepared: Prepared, steps: int | None) -> _Captured | None:
        rows = len(prepared)
        what = f"rows={rows} steps={steps or 'own'} continued={prepared.constraint is not None}"
        if self._sealed or self.count >= self._limit:
            log.warning("no graph for %s: eager from here on, which is slower", what)
            return None
        static = prepared.to(self.model.device)
        if not self._cuda:
            static = _copied(static)

        def run() -> Tensor:
            return self.model.predict(static.batch, static.noise, steps, static.constraint).float()

        try:
            replay, out = self._capture(run, self._pool)
        except RuntimeError as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("no graph for %s: eager, which is slower (%s)", what, first[0])
            return None
        staged = [self._host(tensor) for tensor in tensors(prepared)]
        places, answer = Places(prepared, staged), self._host(out)
        log.info("captured %s", what)
        return _Captured(replay, staged, places, tensors(static), [out], [answer], answer.numpy().data)

    def _host(self, like: Tensor) -> Tensor:
        """Memory of the host that a GPU reads without the CPU's help."""
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=self._cuda)

    def _replay(self, graph: _Captured, to: list[Tensor], given: list[Tensor]) -> Tensor:
        # Each call gives up the interpreter's lock, and gets it back once another thread's turn is over: so
        # five calls, whatever the number of rows and tensors. Not Tensor.copy_, which gives it up twice.
        torch._foreach_copy_(to, given)
        torch._foreach_copy_(graph.inputs, graph.staged, non_blocking=True)
        graph.replay()
        torch._foreach_copy_(graph.answer, graph.out, non_blocking=True)
        if self._cuda:
            # The only wait, for the answer: the next batch may then write where this one was read from.
            torch.cuda.current_stream().synchronize()
        # The next answer overwrites this one. Python's own copy keeps the lock; torch's and numpy's do not.
        kept = np.frombuffer(bytearray(graph.seen), np.float32)
        return torch.from_numpy(kept.reshape(graph.seen.shape))


def _copied(prepared: Prepared) -> Prepared:
    # On a CPU ``to`` shares the caller's tensors; a graph's are its own.
    batch = prepared.batch._map(torch.clone)
    constraint = prepared.constraint
    if constraint is not None:
        constraint = type(constraint)(
            constraint.actions.clone(), constraint.weights.clone(), constraint.n_frozen
        )
    return Prepared(batch, prepared.noise.clone(), constraint)


class GraphedPolicy(VLAPolicy):
    """A policy whose predictions are graphs; see :class:`GraphedModel`.

    Args:
        policy: in evaluation mode, on a GPU; its model is shared.
        graphs: None: new ones.
    """

    def __init__(self, policy: VLAPolicy, graphs: GraphedModel | None = None) -> None:
        super().__init__(policy.model, policy.pipelines, policy.config)
        self.graphs = graphs or GraphedModel(policy.model)

    def prepare(self, rows: Sequence[Row]) -> Flat:
        """See :meth:`VLAPolicy.prepare`; also what a graph asks of rows, for any thread may do that."""
        return Flat(super().prepare(rows))

    def predict(self, prepared: Prepared, steps: int | None = None) -> Tensor:
        """See :meth:`VLAPolicy.predict`."""
        self._check_evaluates()
        return self.graphs.predict(prepared, steps)

    def predict_rows(self, parts: Sequence[Prepared], steps: int | None = None) -> Tensor:
        """:meth:`predict` of the rows of all ``parts``, in order, bit by bit; they need not be joined."""
        self._check_evaluates()
        return self.graphs.predict_rows(parts, steps)

    def _check_evaluates(self) -> None:
        if self.model.training:
            raise ValueError("call policy.eval() before act(): dropout would make answers random")


def repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that a model repeats: elements of a ``ModuleList`` of at least two of their class."""
    return [
        block
        for group in model.modules()
        if isinstance(group, torch.nn.ModuleList) and len(group) > 1
        for block in group
        if len({type(member) for member in group}) == 1 and any(True for _ in block.children())
    ]


def compile_blocks(model: torch.nn.Module, hooks: bool = True) -> int:
    """Compile :func:`repeated_blocks`, in place; returns how many.

    They share what is compiled for one of them, so that this costs seconds a shape and not minutes.

    Args:
        model: a deep copy of it, where ``hooks`` is False, would compute with the weights of the first.
        hooks: compile what is hooked to a block with it. False leaves hooks that gather and free the
            weights outside: inside they break the graph, and are wrapped anew in each call.
    """
    blocks = repeated_blocks(model)
    # Every batch size is a shape of its own, and so is every kind of mask.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        if hooks:
            block.compile(dynamic=False)
        else:
            block.forward = torch.compile(block.forward, dynamic=False)
    return len(blocks)
