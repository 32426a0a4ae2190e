"""Kernels for few rows: a robot's chunk is 49 or 51 of them, and reading weights all that it costs.

When a model is loaded to answer (:mod:`vla_core.packing`), blocks :func:`mark` their layers. :func:`linear`,
:func:`norm`, :func:`rms_norm` and attention then take kernels written for Hopper GPUs, for bfloat16
without gradients and for at most ``MOST_ROWS`` rows, and torch's for all else. Each of them may begin while
the one in front of it still runs (programmatic dependent launch): the next weight is on its way to the
second-level cache before there is anything to multiply it with.
"""

from vla_heads.few_rows.attentions import attention, prefixed_attention, takes_prefix
from vla_heads.few_rows.layers import linear, mark
from vla_heads.few_rows.norms import norm, rms_norm

__all__ = ["attention", "linear", "mark", "norm", "prefixed_attention", "rms_norm", "takes_prefix"]
