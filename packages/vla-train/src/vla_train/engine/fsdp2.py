"""FSDP2: every rank holds its share of each parameter; groups of layers are gathered in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from vla_core.model import VLAModel
from vla_core.weights import disk_error

from vla_train.engine.base import KINDS, WHOLE, Copy, Engine
from vla_train.engine.gathering import Part, gathered
from vla_train.engine.groups import spread
from vla_train.engine.shares import complete, keeping_shares
from vla_train.optimizer.masters import MasterAdamW, counted, total_norm
from vla_train.parts import local, whole


class FSDP2(Engine):
    """torch's ``fully_shard``, by groups of layers as the model's parts declare them (:mod:`vla_core.shard`).

    accelerate's own plugin is not used: it finds layers by class names or sizes. Gradients are exchanged
    after the last micro-batch of a step. States are written by torch's distributed checkpoint, so that
    another number of ranks can go on from them.

    Args:
        accelerator, accumulation: as for every engine.
        reshard: free a layer's weights between its forward and its backward pass.
        prefetch: groups gathered ahead of the one that computes.
        gather_mb: megabytes of weights that one group of layers has at most.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        accumulation: int,
        *,
        reshard: bool = True,
        prefetch: int = 1,
        gather_mb: int = 500,
    ) -> None:
        spreads = KINDS if reshard else [kind for kind in KINDS if kind != "weights"]
        super().__init__(accelerator, accumulation, name="FSDP2", shards=True, spreads=spreads)
        self.reshard, self.prefetch, self.gather_mb = reshard, prefetch, gather_mb
        self.uses = frozenset({"reshard", "prefetch", "gather_mb"})
        # Its layers gather themselves as soon as they are split.
        self.computes_early = True
        self._micro = 0
        self._objects: list[Any] = []

    def sharing(self) -> AbstractContextManager[Any]:
        """See the base; each rank keeps its rows, in one process that is all of them."""
        return keeping_shares(self.rank, self.world, self.device) if self.world > 1 else nullcontext()

    def split(self, model: nn.Module) -> None:
        """Move the model to the device and spread its parameters, inner units first."""
        # What is kept by shares is made whole group by group.
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(self.device))
        spread(
            model,
            gather_mb=self.gather_mb,
            reshard=self.reshard,
            prefetch=self.prefetch,
            complete=lambda layers: complete(layers, self.device),
        )
        if isinstance(model, VLAModel):  # a backbone alone predicts nothing
            register_fsdp_forward_method(model, "predict")

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over a model that was :meth:`split`, and an optimizer of its parameters."""
        self.model = self.module = model
        self.parameters = list(model.parameters())
        self.optimizer = optimizer
        self.masters = optimizer if isinstance(optimizer, MasterAdamW) else None

    # ------------------------------------------------------------------ the step

    @property
    def _last(self) -> bool:
        return self._micro == self.accumulation - 1

    def micro_batch(self) -> AbstractContextManager[Any]:
        """See the base."""
        if self.accumulation == 1:
            return nullcontext()
        return self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.module.set_requires_gradient_sync(self._last)
        yield
        self._micro = (self._micro + 1) % self.accumulation

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """See the base."""
        with self.autocast():
            return dict(self.module(*args, **kwargs))

    def backward(self, loss: Tensor) -> None:
        """See the base."""
        (loss / self.accumulation).backward()

    def update(self, clip_norm: float, leave_out: bool = False) -> Any:
        """See the base."""
        if not self._last:
            return None
        norm = self.clip(clip_norm, leave_out) if clip_norm or leave_out else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def clip(self, clip_norm: float, leave_out: bool = False) -> Any:
        """See the base; the norm is that of all shares together."""
        # Without a graph, a gradient's share is an attribute of it; else, or detached, it is an operation.
        with torch.no_grad():
            gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        norm = self.sum(total_norm(gradients).to(self.device).square()).sqrt()
        if self.masters is not None:
            self.masters.limit(norm, clip_norm, leave_out)
        else:
            torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    # ------------------------------------------------------------------ the whole model

    def state(self, copy: Copy | None = None) -> Mapping[str, Tensor]:
        """The parts are gathered tensor by tensor, to the first rank's CPU."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            gathered = whole(tensor)
            if self.is_main:
                state[name] = copy(gathered, f"{WHOLE}.{name}") if copy else gathered.detach().cpu()
        return state

    def state_later(self, copy: Copy, channel: ProcessGroup | None) -> Callable[[], Mapping[str, Tensor]]:
        """See the base; of every parameter each rank copies its rows."""
        kept = copy(dict(self.model.state_dict()), WHOLE)
        parts = {
            name: _part(tensor) if isinstance(tensor, DTensor) else tensor for name, tensor in kept.items()
        }
        return lambda: gathered(parts, channel, self.is_main)

    def remember(self, *objects: Any) -> None:
        """See the base."""
        self._objects.extend(objects)

    def save(self, folder: Path) -> None:
        """See the base."""
        _write(self._shares(), folder, None)

    def save_later(self, folder: Path, copy: Copy, channel: ProcessGroup | None) -> Callable[[], None]:
        """See the base; every rank copies and writes its share."""
        shares = copy(self._shares(), "shares")
        return lambda: _write(shares, folder, channel)

    def _shares(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": dict(self._optimizer_state()),
            "objects": [thing.state_dict() for thing in self._objects],
        }

    def load(self, folder: Path) -> None:
        """Inverse of :meth:`save`."""
        saved = FileSystemReader(folder).read_metadata().state_dict_metadata
        optimizer: dict[str, Any] = {}
        for i, parameter in enumerate(self._parameters()):
            prefix = f"optimizer.{i}."
            for key in (key for key in saved if key.startswith(prefix)):
                optimizer[key.removeprefix("optimizer.")] = _room(saved[key], parameter)
        objects = [thing.state_dict() for thing in self._objects]
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": optimizer, "objects": objects}
        try:
            load(state, checkpoint_id=folder)
        except CheckpointException as error:
            # What a rank met, as the other engines' readers raise it.
            raise next(iter(error.failures.values()))[0] from error
        for i, parameter in enumerate(self._parameters()):
            prefix = f"{i}."
            own = {k.removeprefix(prefix): v for k, v in state["optimizer"].items() if k.startswith(prefix)}
            if own:
                self.optimizer.state[parameter] = counted(own, self.masters is not None)
        for thing, value in zip(self._objects, state["objects"], strict=True):
            thing.load_state_dict(value)

    def _parameters(self) -> Iterator[Tensor]:
        """In the order of the optimizer's groups, which is that of the model and the config."""
        return chain.from_iterable(group["params"] for group in self.optimizer.param_groups)

    def _optimizer_state(self) -> Iterator[tuple[str, Any]]:
        for i, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{i}.{name}", value


def _part(tensor: DTensor) -> Part:
    """FSDP2 gives each rank as many rows as the first, as long as there are some."""
    shape, world = tuple(tensor.shape), tensor.device_mesh.size()
    return Part(tensor.to_local(), -(-shape[0] // world) * math.prod(shape[1:]), shape)


def _write(shares: dict[str, Any], folder: Path, channel: ProcessGroup | None) -> None:
    """By all ranks; ``channel``: other than that of the training.

    Raises:
        OSError: on all ranks, where one cannot write.
    """
    try:
        save(shares, checkpoint_id=folder, process_group=channel)
    except CheckpointException as error:
        for rank, (cause, _) in error.failures.items():
            if (found := disk_error(cause)) is not None:
                raise OSError(f"{found.strerror or found}, on rank {rank}") from error
        raise


def _room(facts: Any, parameter: Tensor) -> Any:
    """What a saved value is read into: spread as the parameter, where it has its shape."""
    if not isinstance(facts, TensorStorageMetadata):
        return 0
    dtype = facts.properties.dtype
    if facts.size == parameter.shape and parameter.ndim:
        return torch.zeros_like(parameter, dtype=dtype)
    return torch.zeros(facts.size, dtype=dtype)
