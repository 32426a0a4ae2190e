"""On a GPU: no waiting, one graph, and the cache between streams."""

from __future__ import annotations

import pytest
import torch
from vla_core.batch import Cameras
from vla_geometry import MapAnythingConfig, MapAnythingEncoder, TinyGeometryConfig, TinyGeometryEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE, DENSE = (56, 70), frozenset({"depth", "points"})


@pytest.fixture(params=["tiny", "mapanything"])
def case(request):
    """A frozen encoder in bf16 with a cache, two views and their calibration."""
    if request.param == "tiny":
        encoder = TinyGeometryEncoder.build(TinyGeometryConfig(cache_mib=16), 2, SIZE)
    else:
        encoder = MapAnythingEncoder.build(MapAnythingConfig(size="tiny", cache_mib=16), 2, SIZE)
    images = torch.randint(0, 256, (2, 2, 3, *SIZE), dtype=torch.uint8, device="cuda")
    matrix = torch.tensor([[60.0, 0, 35.0], [0, 60.0, 28.0], [0, 0, 1.0]], device="cuda")
    return encoder.to("cuda", torch.bfloat16), images, Cameras(matrix.repeat(2, 2, 1, 1))


def test_never_waits_for_the_device(case):
    encoder, images, cameras = case
    keyed = Cameras(cameras.intrinsics, view_keys=(("a", None), (None, "b")))
    encoder(images, keyed, DENSE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoder(images, cameras, DENSE)
        encoder(images, keyed, DENSE)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_is_one_graph(case):
    encoder, images, cameras = case
    encoder(images, cameras, DENSE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = encoder(images, cameras, DENSE)
    images.copy_(255 - images)
    graph.replay()
    expected = encoder(images, cameras, DENSE)
    for name in ("tokens", "registers", "depth", "points"):
        assert torch.allclose(getattr(captured, name), getattr(expected, name), rtol=2e-2, atol=2e-2), name


@torch.inference_mode()
def test_keys_between_streams_and_not_in_a_graph(case):
    encoder, images, cameras = case
    keyed = Cameras(cameras.intrinsics, view_keys=(("a", "b"), ("c", "d")))
    plain = encoder(images, cameras).tokens
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        encoder(images, keyed)
    for _ in range(5):  # nobody joins the streams: the event of each entry does
        assert torch.equal(encoder(images, keyed).tokens, plain)
    assert encoder.cache.misses == 4
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="while a CUDA graph is captured"), torch.cuda.graph(graph):
        encoder(images, keyed)
