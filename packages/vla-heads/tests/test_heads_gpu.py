import pytest
import torch
from vla_heads import HeadDims, HeadInputs, LayerwiseFM, VLMOutput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def case():
    dims = HeadDims(hidden_size=128, n_layers=3, action_dim=7, horizon=8, state_dim=5)
    head = LayerwiseFM.build(LayerwiseFM.Config(n_future_tokens=4), dims).to("cuda", torch.bfloat16)
    torch.nn.init.normal_(head.decoder.down.weight, std=0.02)
    hidden = {i: torch.randn(4, 50, 128, device="cuda", dtype=torch.bfloat16) for i in head.layers}
    mask = torch.ones(4, 50, dtype=torch.bool, device="cuda")
    return head, HeadInputs(VLMOutput(hidden, mask, {}), state=torch.randn(4, 5, device="cuda"))


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
