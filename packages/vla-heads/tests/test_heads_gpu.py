import pytest
import torch
from vla_core.interfaces import KVDims
from vla_heads import AdapterHead, GR00TFlow, HeadDims, HeadInputs, LayerwiseFM, PI0Head, VLMOutput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


DIMS = HeadDims(
    hidden_size=128,
    n_layers=3,
    action_dim=7,
    horizon=8,
    state_dim=5,
    n_embodiments=3,
    kv=KVDims(4, 1, 32, 10_000.0),
)
HEADS = {
    "layerwise": (LayerwiseFM, {"n_future_tokens": 4}),
    "projected": (LayerwiseFM, {"n_future_tokens": 4, "project_context": "per_layer", "width": 64}),
    "groot": (GR00TFlow, {"n_future_tokens": 4, "size": "custom", "width": 128, "n_blocks": 4}),
    "adapter": (AdapterHead, {"n_queries": 8, "n_blocks": 3, "width": 128}),
    "pi0": (PI0Head, {"width": 128, "mlp_width": 256}),
    "pi05": (PI0Head, {"variant": "pi05", "width": 128, "mlp_width": 256}),
}


@pytest.fixture(params=HEADS)
def case(request):
    cls, options = HEADS[request.param]
    head = cls.build(cls.Config(**options), DIMS).to("cuda", torch.bfloat16)
    last = {AdapterHead: "linear_out", PI0Head: "action_out_proj"}.get(cls, "decoder.down")
    torch.nn.init.normal_(head.get_submodule(last).weight, std=0.02)
    request = head.request("train")
    hidden = {i: torch.randn(4, 50, 128, device="cuda", dtype=torch.bfloat16) for i in request.layers}
    kv = {i: tuple(torch.randn(2, 4, 1, 50, 32, device="cuda", dtype=torch.bfloat16)) for i in request.kv}
    mask = torch.ones(4, 50, dtype=torch.bool, device="cuda")
    position = torch.arange(50, device="cuda").expand(4, -1)
    spans = {"image": position < 32, "query": position >= 42}
    state, embodiment = torch.randn(4, 5, device="cuda"), torch.tensor([0, 2, 1, 2], device="cuda")
    return head, HeadInputs(VLMOutput(hidden, mask, spans, kv=kv), state=state, embodiment=embodiment)


def test_never_waits_for_the_device(case):
    head, inputs = case
    actions = torch.randn(4, 8, 7, device="cuda")
    mask = torch.ones_like(actions, dtype=torch.bool)
    torch.cuda.set_sync_debug_mode("error")
    try:
        head(inputs, actions, mask)["action_loss"].backward()
        with torch.inference_mode():
            head.sample(inputs, actions, steps=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sample_is_one_graph(case):
    head, inputs = case
    noise = torch.randn(4, 8, 7, device="cuda")
    with torch.inference_mode():
        expected = head.sample(inputs, noise)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = head.sample(inputs, noise)
        graph.replay()
    assert torch.allclose(captured, expected, atol=1e-3)
