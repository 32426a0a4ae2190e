"""ZeRO-1 and 2 with less for the host to do: DeepSpeed's optimizer, taking many gradients at once.

DeepSpeed copies each gradient into its bucket by itself, and each averaged one out of it; looks through all
parameters for those that the backward pass will reach, though autograd tells when it ends; takes the norm
of each gradient by itself; points every weight at its place anew after a step; and has the host wait for
the device after the backward pass and for each group of parameters that it clips. A step of thousands of
short kernels then waits for the host.

Where the host waited, streams wait for each other: after the backward pass those that computed gradients
for the one that exchanges them, and that one for what was read of its results, before either uses memory
again.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

SERIES = "0.19."
"""The releases of DeepSpeed whose methods these take the place of."""

TOGETHER = 64
"""Gradients that are copied at once, at most: they keep their memory until then."""


def make_lean(optimizer: Any) -> bool:
    """Make an optimizer of DeepSpeed's one of these, in place; returns whether it was one that can be.

    Others, those of another series of releases, and those whose gradients leave the device or go through no
    bucket, stay what they are.
    """
    if not deepspeed.__version__.startswith(SERIES):
        return False
    if type(optimizer) is not DeepSpeedZeroOptimizer or optimizer.cpu_offload or optimizer.has_moe_layers:
        return False
    if not optimizer.contiguous_gradients or optimizer.model_parallel_world_size > 1:
        return False
    optimizer.__class__ = LeanZero
    optimizer.start()
    return True


class LeanZero(DeepSpeedZeroOptimizer):
    """DeepSpeed's, made by :func:`make_lean`; every method overrides one of its."""

    overlap_comm: bool

    def start(self) -> None:
        """What this class keeps."""
        self._waiting: list[tuple[Any, Tensor, int]] = []
        """Parameters, their gradients, and where in a bucket these will be copied to."""
        self._waiting_in: Any = None
        """Their bucket."""
        self._stream: Any = None
        """On which they were computed."""
        self._own: list[Tensor] = []
        """Averaged gradients of this rank's share, still in the bucket."""
        self._producers: set[Any] = set()
        """Streams that computed gradients in this backward pass."""

    @property
    def _streams(self) -> bool:
        """Whether the exchange has a stream of its own."""
        return self.overlap_comm and not get_accelerator().resolves_data_dependency()

    # ------------------------------------------------------------------ when a gradient arrives

    def should_refresh_expected_hook_count(self) -> bool:
        """Not where autograd calls back at the end: then nobody asks how many gradients are to come."""
        if self._backward_hook_state.post_backward_callback_queued:
            return False
        return bool(super().should_refresh_expected_hook_count())

    def reenter_backward_if_needed(self) -> None:
        """Not within a backward pass, which is most often."""
        if not self._backward_hook_state.backward_active_depth:
            super().reenter_backward_if_needed()

    def update_hook_state_and_maybe_run_epilogue(self, current_expected_count: int) -> None:
        """Only count where autograd calls back at the end."""
        state = self._backward_hook_state
        if state.post_backward_callback_queued:
            state.hooks_fired_this_backward += 1
        else:
            super().update_hook_state_and_maybe_run_epilogue(current_expected_count)

    def reduce_independent_p_g_buckets_and_remove_grads(self, param: Any, i: int) -> None:
        """Give a gradient its place in the bucket; it is copied with others."""
        size = param.numel()
        bucket = self.ipg_buckets[self.get_param_comm_dtype(param)]
        stream = get_accelerator().current_stream()
        by_itself = not size or hasattr(param, "ds_grad_is_ready")
        by_itself |= bucket.elements + size > self.reduce_bucket_size
        if self._waiting and (by_itself or bucket is not self._waiting_in or stream != self._stream):
            self._copy_in()
        if by_itself:
            # Where the bucket is full it is exchanged here.
            super().reduce_independent_p_g_buckets_and_remove_grads(param, i)
            self._producers.add(stream)
            if size > self.reduce_bucket_size and self._streams:
                # It is exchanged where it lies, and freed while that goes on.
                self.get_gradient_for_reduction(param).record_stream(self.reduction_stream)
            return
        number = self.get_param_id(param)
        assert not self.params_already_reduced[number], "a gradient came twice"
        self._waiting_in, self._stream = bucket, stream
        self._waiting.append((param, self.get_gradient_for_reduction(param), bucket.elements))
        bucket.elements += size
        bucket.params.append((i, param.param_idx_in_group, number))
        if len(self._waiting) == TOGETHER:
            self._copy_in()

    def _copy_in(self) -> None:
        """Into the bucket, on the stream on which the gradients were computed."""
        waiting, bucket, stream = self._waiting, self._waiting_in, self._stream
        self._waiting = []
        first = waiting[0][2]
        gradients = [gradient for _, gradient, _ in waiting]
        with get_accelerator().stream(stream):
            flat = bucket.buffer[bucket.index].narrow(0, first, bucket.elements - first)
            places = _unflatten_dense_tensors(flat, gradients)
            torch._foreach_copy_(places, gradients)
        for (param, gradient, _), place in zip(waiting, places, strict=True):
            if self.is_param_in_current_partition[self.get_param_id(param)]:
                gradient.data = place
            else:
                self.clear_grad_attribute(param)
        self._producers.add(stream)
        if self._streams:
            bucket.copy_streams.add(stream)

    # ------------------------------------------------------------------ when a bucket is full, and at the end

    def reduce_ipg_grads(self, comm_dtype: torch.dtype | None = None) -> None:
        """Exchange buckets; what is this rank's is copied out at once."""
        if self._waiting:
            self._copy_in()
        if not any(bucket.elements for bucket in self.ipg_buckets.values()):
            return
        super().reduce_ipg_grads(comm_dtype)
        if self._own:
            stream = self.reduction_stream if self.overlap_comm else get_accelerator().current_stream()
            with get_accelerator().stream(stream):
                self._copy_out()

    def copy_grads_in_partition(self, param: Any, group_idx: int | None = None) -> None:
        """Called for each gradient of this rank's share once its bucket is exchanged."""
        if self.grads_in_partition is None or self.use_grad_accum_attribute:
            super().copy_grads_in_partition(param, group_idx)
        else:
            self._own.append(self.get_gradient_for_reduction(param))

    def _copy_out(self) -> None:
        own, self._own = self._own, []
        size = sum(gradient.numel() for gradient in own)
        flat = self.grads_in_partition.narrow(0, self.grads_in_partition_offset, size)
        places = _unflatten_dense_tensors(flat, own)
        torch._foreach_copy_(places, own)
        for gradient, place in zip(own, places, strict=True):
            gradient.data = place
        self.grads_in_partition_offset += size

    def independent_gradient_partition_epilogue(self) -> None:
        """The end of a backward pass, without waiting for the device."""
        self.reduce_ipg_grads()
        overlapped, exchange = self.overlap_comm, self.reduction_stream
        here = get_accelerator().current_stream()
        if self._streams:
            # Buckets and gradients are of their memory.
            for stream in self._producers | {here}:
                stream.wait_stream(exchange)
        # Told that nothing is under way, it has no reason to wait for the device; all buckets are empty.
        self.overlap_comm = False
        try:
            super().independent_gradient_partition_epilogue()
        finally:
            self.overlap_comm = overlapped
        if self._streams:
            # This rank's share is of its memory, and was added up here.
            exchange.wait_stream(here)
        self._producers.clear()

    # ------------------------------------------------------------------ the step

    def step(self, closure: Any = None) -> None:
        """See above; the exchange of the next step begins when this one has read its gradients."""
        super().step(closure)
        if self._streams:
            self.reduction_stream.wait_stream(get_accelerator().current_stream())

    def get_grad_norm_direct(self, gradients: Any, params: Any, norm_type: float = 2) -> Tensor:
        """Of all ranks' gradients, float32; -1 where it is not finite."""
        if norm_type != 2:
            return super().get_grad_norm_direct(gradients, params, norm_type)
        real = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
        held = [gradient for gradient, _ in zip(real, params, strict=False)]
        total = torch.zeros((), device=self.device)
        if held:
            # In double, as DeepSpeed's, but without copies in double.
            total = torch.stack(torch._foreach_norm(held, 2, torch.double)).square().sum().float()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.dp_process_group)
        total = total.sqrt()
        return total.masked_fill(~total.isfinite(), -1.0)

    def unscale_and_clip_grads(self, grad_groups_flat: Any, total_norm: Tensor) -> None:
        """The norm, which is infinite where it is not valid, is not read by the host."""
        if self.clip_grad == 0.0 and self.loss_scale == 1.0:
            return
        scale: Any = self.loss_scale
        if self.clip_grad > 0.0:
            scale = (((total_norm / scale) + 1e-6) / self.clip_grad).clamp(min=1.0) * scale
        for gradient in grad_groups_flat:
            gradient.data.mul_(1.0 / scale)

    def _update_model_bit16_weights(self, group_index: int) -> None:
        """Weights that lie where they should stay as they are."""
        flat = self.bit16_groups_flat[group_index]
        start, width = flat.data_ptr(), flat.element_size()
        weights = zip(
            self.round_robin_bit16_groups[group_index],
            self.round_robin_bit16_offsets[group_index],
            strict=True,
        )
        if any(weight.data_ptr() != start + width * offset for weight, offset in weights):
            super()._update_model_bit16_weights(group_index)
