"""Streams and graphs on a GPU."""

from __future__ import annotations

import pytest
import torch
from vla_core.interfaces import GeometryFeatures
from vla_core.overlap import in_turn, side_by_side

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
N, DEPTH = 1024, 40


@pytest.fixture
def work():
    """Two chains of matrix products that read one input, and their sum."""
    torch.manual_seed(0)
    side, main = (torch.randn(DEPTH, N, N, device="cuda") / N**0.5 for _ in range(2))
    x = torch.randn(64, N, device="cuda")

    def chain(weights, y=None):
        y = x if y is None else y
        for weight in weights:
            y = torch.tanh(y @ weight)
        return y

    def call(streams=None):
        def aside():
            if streams is not None:
                streams.append(torch.cuda.current_stream())
            # A call within the call: half of the input on a further stream.
            lower, upper = side_by_side(lambda: chain(side, x[:32]), lambda: chain(side, x[32:]), x.device)
            return GeometryFeatures(torch.cat([lower, upper]))

        features, other = side_by_side(aside, lambda: chain(main), x.device)
        return features.tokens + 2 * other

    return call, x


@torch.inference_mode()
def test_the_side_has_a_stream_of_its_own_and_the_sum_is_the_same(work):
    call, _ = work
    streams = []
    with in_turn():
        expected = call(streams)
    for _ in range(20):  # memory of both streams is used again and again
        assert torch.equal(call(streams), expected)
    assert streams[0] == torch.cuda.current_stream()
    assert len(set(streams[1:])) == 1
    assert streams[1] != streams[0]


@torch.inference_mode()
def test_never_waits_for_the_device(work):
    call, _ = work
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_branches_of_one_graph(work):
    call, x = work
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in range(3):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        with in_turn():
            assert torch.allclose(captured, call(), atol=1e-5)


def test_one_after_the_other_while_gradients_are_recorded(work):
    call, _ = work
    streams = []
    call(streams)
    assert streams == [torch.cuda.current_stream()]
