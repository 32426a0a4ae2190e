"""The memory of DDP's buckets, lent only while there are gradients in it.

DDP keeps the buckets in which gradients are exchanged for the life of the run: as much as all gradients,
also while the forward pass fills the memory with activations. Here a bucket's memory is given back after each
step and taken again when the first of its gradients arrives, while activations go; so that the most that a
rank has is what one process would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class Buckets:
    """Of a wrapped model whose gradients are views of its buckets.

    Args:
        module: made with ``gradient_as_bucket_view``.
        parameters: those that it exchanges.
    """

    def __init__(self, module: DistributedDataParallel, parameters: Sequence[Tensor]) -> None:
        self._reducer: Any = module.reducer
        self._parameters = list(parameters)
        self._stores: dict[int, tuple[torch.UntypedStorage, int]] = {}
        self._hooks: list[Any] = []

    @property
    def stores(self) -> list[torch.UntypedStorage]:
        """What the buckets are kept in; empty before the first step."""
        return [store for store, _ in self._stores.values()]

    def step(self) -> None:
        """Between two steps, when no gradient is kept: give the memory back. Called by all ranks."""
        if not self._hooks:
            self._find()
        for store in self.stores:
            store.resize_(0)

    def forget(self) -> None:
        """Leave the buckets as they are; the wrapper may go then."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._stores = [], {}

    def _find(self) -> None:
        # After the first backward pass DDP lays its buckets out anew, in the order in which gradients came.
        # It would do so in the next forward pass.
        self._reducer._rebuild_buckets()
        # A bucket is known by the gradients in it: zeros are exchanged once.
        self._reducer.prepare_for_forward()
        self._reducer.prepare_for_backward([])
        zeros = [p.new_zeros(()).expand_as(p) for p in self._parameters]
        torch.autograd.backward(self._parameters, zeros)
        for parameter in self._parameters:
            assert parameter.grad is not None
            store = parameter.grad.untyped_storage()
            _, size = self._stores.setdefault(store.data_ptr(), (store, store.nbytes()))
            # Before the gradient is put into its bucket.
            self._hooks.append(parameter.register_hook(_fill(self._stores[store.data_ptr()][0], size)))
            parameter.grad = None


def _fill(store: torch.UntypedStorage, size: int) -> Callable[[Tensor], None]:
    def fill(gradient: Tensor) -> None:
        if not store.nbytes():
            store.resize_(size)

    return fill
