"""The interface between the loop and what runs it; accelerate does the work."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.checkpointing import save_accelerator_state
from accelerate.utils import broadcast_object_list, gather_object, save
from accelerate.utils.constants import OPTIMIZER_NAME, SAFE_WEIGHTS_NAME
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from vla_core.errors import UserError
from vla_core.shard import in_step

from vla_train.optimizer.masters import MasterAdamW, total_norm

T = TypeVar("T")
Copy = Callable[[Any, str], Any]
"""Plain data with tensors, and a name for it -> the same in memory of its own, on the host."""
WHOLE = "checkpoint"
"""The name under which the whole model is copied."""

KINDS = ("weights", "gradients", "masters", "moments", "average")
"""What training keeps in memory whatever the batch."""


class Engine:
    """Prepares, steps, gathers and saves. The loop is the same for all engines.

    Every method is called by all ranks unless it says otherwise.

    Args:
        accelerator: tells ranks, device and precision.
        accumulation: micro-batches a step.
        name: as it is shown.
        shards: a rank holds only its part of the parameters between the layers' calls.
        has_masters: the optimizer steps fp32 copies of weights of a lower precision.
        spreads: of :data:`KINDS`, what is split evenly over the ranks.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        accumulation: int = 1,
        *,
        name: str = "one process",
        shards: bool = False,
        has_masters: bool = False,
        spreads: Collection[str] = (),
    ) -> None:
        self.accelerator, self.accumulation = accelerator, accumulation
        self.name, self.shards, self.has_masters = name, shards, has_masters
        self.spreads = frozenset(spreads)
        self.uses: frozenset[str] = frozenset()
        """Of the keys of the trainer section that some engines have no use for, those of this one."""
        self.computes_early = not shards
        """The model computes, forward and backward, before :meth:`prepare`."""
        self.gathers_inside = False
        """It gathers parameters inside of layers, module by module."""
        self.most_whole = 0
        """Numbers of parameters that it may keep whole from one layer to the next."""
        self.early_gradients = False
        """It has room for all gradients from the start on, beside the activations."""
        self._remembered: list[Any] = []
        self.offloads = False
        """Some of what it keeps lies in the memory of the host."""
        self.device: torch.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process

    def sharing(self) -> AbstractContextManager[Any]:
        """Around what makes parameters, before :meth:`split`; most engines have each rank make them all."""
        return nullcontext()

    def split(self, model: nn.Module) -> None:
        """Spread the parameters over the ranks, before an optimizer sees them; most engines do nothing."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over model and optimizer: device, wrapping, sharding. Once."""
        self.model = model
        self.masters = optimizer if isinstance(optimizer, MasterAdamW) else None
        self.module, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Walking through the modules takes the host a millisecond, in each step.
        self.parameters = list(model.parameters())

    def regroup(self) -> None:
        """Other parameters have gradients from now on, between two steps; most engines look each time."""

    # ------------------------------------------------------------------ the step

    def micro_batch(self) -> AbstractContextManager[Any]:
        """Around one micro-batch; ranks exchange gradients after the last of a step."""
        return cast("AbstractContextManager[Any]", self.accelerator.accumulate(self.module))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The loss terms of the wrapped model."""
        return dict(self.module(*args, **kwargs))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation``, averaged over ranks."""
        self.accelerator.backward(loss)

    def update(self, clip_norm: float, leave_out: bool = False) -> Any:
        """After each micro-batch: at the end of a step clip, step and forget the gradients.

        ``leave_out``: a step whose gradient is not finite changes nothing; this takes an optimizer with
        masters.

        Returns the norm of the gradient before clipping, or None where it is not known.
        """
        norm = None
        if self.accelerator.sync_gradients and (clip_norm or leave_out):
            norm = self.clip(clip_norm, leave_out)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def clip(self, clip_norm: float, leave_out: bool = False) -> Any:
        """Bound the gradient of a step; returns its norm before, or None where it is not known."""
        if self.masters is None:
            return self.accelerator.clip_grad_norm_(self.parameters, clip_norm)
        norm = total_norm(p.grad for p in self.parameters if p.grad is not None)
        self.masters.limit(norm, clip_norm, leave_out)
        return norm

    # ------------------------------------------------------------------ the whole model

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the wrapped model computes."""
        return cast("AbstractContextManager[Any]", self.accelerator.autocast())

    def whole(self) -> nn.Module:
        """What validation calls: forward and predict of the very model, without exchange of gradients."""
        return self.model

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """Around calls of :meth:`whole`: its precision, and equally many uses of layers that gather."""
        # Not every engine has the precision inside of the model, and none in predict.
        with self.autocast(), in_step(self._somewhere) if self.shards else nullcontext():
            yield

    def _somewhere(self, here: bool) -> bool:
        return bool(self.sum(torch.tensor(float(here), device=self.device)) > 0)

    def state(self, copy: Copy | None = None) -> Mapping[str, Tensor]:
        """The state dict of the whole model on the first rank; empty elsewhere.

        ``copy``: of every tensor, so that training does not change what is returned.
        """
        state = dict(self.model.state_dict()) if self.is_main else {}
        return dict(copy(state, WHOLE)) if copy else state

    def state_later(self, copy: Copy, channel: ProcessGroup | None) -> Callable[[], Mapping[str, Tensor]]:
        """:meth:`state` in two parts: each rank copies what it holds now, and gathers it later.

        Args:
            copy: what training shall not change.
            channel: between the ranks, for the second part; None: there is one rank.

        Returns what gives the state dict; every rank calls it, in any thread, the same order on all.
        """
        state = self.state(copy)
        return lambda: state

    def save(self, folder: Path) -> None:
        """Model, optimizer and what was given to :meth:`remember`; each rank writes what it holds."""
        self.accelerator.save_state(str(folder))

    def save_later(self, folder: Path, copy: Copy, channel: ProcessGroup | None) -> Callable[[], None]:
        """:meth:`save` in two parts: what is small is written now, the rest is copied.

        Args:
            folder: as for :meth:`save`.
            copy: what training shall not change.
            channel: between the ranks, for the second part; None: there is one rank.

        Returns what writes the rest; every rank calls it, in any thread, the same order on all.
        """
        self._save_streams(folder)
        if not self.is_main:
            return lambda: None
        model = copy(self.model.state_dict(), "model")
        optimizer = copy(self.optimizer.state_dict(), "optimizer")
        objects = self._copied_objects(copy)

        def write() -> None:
            # The files of :meth:`save`, which :meth:`load` reads.
            save(model, folder / SAFE_WEIGHTS_NAME, safe_serialization=True)
            torch.save(optimizer, folder / f"{OPTIMIZER_NAME}.bin")
            save_objects(objects, folder)

        return write

    def _save_streams(self, folder: Path) -> None:
        """The random streams of this rank."""
        folder.mkdir(parents=True, exist_ok=True)
        save_accelerator_state(folder, [], [], [], [], self.rank, self.accelerator.step)

    def _copied_objects(self, copy: Copy) -> list[Any]:
        """Those of :meth:`remember`, which are the same on all ranks."""
        if not self.is_main:
            return []
        return [copy(thing.state_dict(), f"object {i}") for i, thing in enumerate(self._remembered)]

    def load(self, folder: Path) -> None:
        """Inverse of :meth:`save`."""
        self.accelerator.load_state(str(folder))

    def remember(self, *objects: Any) -> None:
        """Objects with ``state_dict`` and ``load_state_dict`` that :meth:`save` is to save as well."""
        self.accelerator.register_for_checkpointing(*objects)
        self._remembered.extend(objects)

    def numel(self, parameter: Tensor) -> int:
        """How many numbers a parameter has on all ranks together."""
        return parameter.numel()

    def memory(self) -> dict[str, float]:
        """``host_memory_gib``, the most that this process had; on a GPU ``memory_gib``, torch's."""
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        out = {"host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
        if self.device.type == "cuda":
            out["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return out

    # ------------------------------------------------------------------ between ranks

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; ``tensor`` itself in one process."""
        return cast(Tensor, self.accelerator.reduce(tensor, "sum")) if self.world > 1 else tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks."""
        return self.sum(tensor) / self.world

    def gather(self, things: list[T]) -> list[T]:
        """The lists of all ranks one after the other, on every rank; plain data."""
        return cast("list[T]", gather_object(things)) if self.world > 1 else things

    def wait(self) -> None:
        """Until all ranks are here."""
        self.accelerator.wait_for_everyone()

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` returns on the first rank, the only one to call it, on every rank.

        Raises:
            UserError: on the first rank, what ``decide`` raised; the other ranks exit without a word.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = decide()
            except UserError as error:
                outcome[1] = error
        if self.world > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            if self.is_main:
                raise outcome[1]
            raise SystemExit(2)
        return cast(T, outcome[0])


def save_objects(objects: list[Any], folder: Path) -> None:
    """As accelerate writes and reads them."""
    for i, thing in enumerate(objects):
        torch.save(thing, folder / f"custom_checkpoint_{i}.pkl")
