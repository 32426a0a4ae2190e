"""CUDA graphs of a policy's predictions: one for each shape of batch, captured before anybody waits.

An eager chunk launches thousands of kernels one by one; a graph launches them at once, and nothing in it
waits for the host. Tensors of a graph stay where they are: what comes in is copied to them, what comes out
from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vla_core.errors import UserError
from vla_core.model import VLAModel
from vla_core.policy import VLAPolicy
from vla_core.rows import Prepared

log = logging.getLogger("vla_core.graphs")

Key: TypeAlias = tuple[Any, ...]
Replay: TypeAlias = Callable[[], None]

WARM_RUNS = 3
"""Before a capture: libraries choose kernels and allocate in their first runs."""

_HOST_ONLY = ("constraint.n_frozen",)
"""What only a check on the host reads, before a graph."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that a nested dataclass holds, by path, in order."""
    for field in fields(value):
        name, inner = f"{path}{field.name}", getattr(value, field.name)
        if is_dataclass(inner) and not isinstance(inner, type):
            yield from leaves(inner, f"{name}.")
        else:
            yield name, inner


def signature(prepared: Prepared, steps: int | None) -> Key:
    """What two batches must have in common to share a graph: everything but the values of tensors."""
    facts: list[Any] = [steps]
    for path, value in leaves(prepared):
        if isinstance(value, Tensor):
            facts.append((path, tuple(value.shape), value.dtype))
        elif isinstance(value, Mapping):
            facts.append((path, tuple(sorted(value.items()))))
        elif path not in _HOST_ONLY:
            facts.append((path, value))
    return tuple(facts)


def tensors(prepared: Prepared) -> list[Tensor]:
    """The tensors of a batch, in the order of :func:`leaves`."""
    return [value for _, value in leaves(prepared) if isinstance(value, Tensor)]


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
    """A graph with its tensors: ``staged`` are on the host, ``inputs`` beside the model."""

    replay: Replay
    staged: list[Tensor]
    inputs: list[Tensor]
    out: Tensor
    answer: Tensor


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
        self._check(prepared)
        cameras = prepared.batch.cameras
        if cameras is not None and cameras.view_keys is not None:
            return self._eager(prepared, steps)
        key = signature(prepared, steps)
        if key not in self._graphs:
            self._graphs[key] = self._make(prepared, steps)
        graph = self._graphs[key]
        return self._eager(prepared, steps) if graph is None else self._replay(graph, prepared)

    def _check(self, prepared: Prepared) -> None:
        constraint, longest = prepared.constraint, self.model.head.traits.longest_delay
        frozen = 0 if constraint is None else constraint.n_frozen or 0
        if longest is not None and frozen > longest:
            raise UserError(
                f"previous chunk: {frozen} frozen steps, the head was trained for at most {longest}"
            )

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
        log.info("captured %s", what)
        return _Captured(replay, staged, tensors(static), out, self._host(out))

    def _host(self, like: Tensor) -> Tensor:
        """Memory of the host that a GPU reads without the CPU's help."""
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=self._cuda)

    def _replay(self, graph: _Captured, prepared: Prepared) -> Tensor:
        # Each call gives up the interpreter's lock, and gets it back once another thread's turn is over: so
        # two calls, not two for each tensor.
        torch._foreach_copy_(graph.staged, tensors(prepared))
        torch._foreach_copy_(graph.inputs, graph.staged, non_blocking=True)
        graph.replay()
        graph.answer.copy_(graph.out, non_blocking=True)
        if self._cuda:
            # The only wait, for the answer: the next batch may then write where this one was read from.
            torch.cuda.current_stream().synchronize()
        return graph.answer.clone()


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

    def predict(self, prepared: Prepared, steps: int | None = None) -> Tensor:
        """See :meth:`VLAPolicy.predict`."""
        if self.model.training:
            raise ValueError("call policy.eval() before act(): dropout would make answers random")
        return self.graphs.predict(prepared, steps)


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
