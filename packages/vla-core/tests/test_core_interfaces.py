from __future__ import annotations

import pytest
import torch
from torch import nn
from vla_core.interfaces import (
    ActionHead,
    HeadDims,
    PromptSpec,
    VisionLanguageModel,
    VLMOutput,
    VLMRequest,
)
from vla_core.testing import FakeHead, FakeVLM, tiny_policy


def test_prompts_unite():
    both = PromptSpec(suffix="a", n_query=2) | PromptSpec(suffix="b", n_query=1, n_prefix=4)
    assert both == PromptSpec("ab", 3, 4)
    assert PromptSpec() | both == both


def test_only_one_answer_and_the_larger_decoder():
    def answer(actions, mask):
        return [0]

    spoken = PromptSpec(answer_ids=answer)
    assert (PromptSpec("a") | spoken).answer_ids is (spoken | PromptSpec("a")).answer_ids is answer
    with pytest.raises(ValueError, match="both bring answer ids; only one may"):
        spoken | PromptSpec(answer_ids=answer)
    both = VLMRequest((1,), logits="labels") | VLMRequest(decoder=4) | VLMRequest(decoder=2)
    assert both == VLMRequest((1,), logits="labels", decoder=4)


def test_requests_unite():
    queries = nn.Embedding(2, 3)
    both = VLMRequest((4, 1)) | VLMRequest((1, 2), queries)
    assert both.layers == (1, 2, 4)
    assert both.queries is queries
    assert (both | VLMRequest()).queries is queries
    # What one head asks for in training and in sampling.
    assert (both | VLMRequest((3,), queries)).queries is queries
    assert (VLMRequest(kv=(3, 1)) | VLMRequest((2,), kv=(1, 2))) == VLMRequest((2,), kv=(1, 2, 3))
    with pytest.raises(ValueError, match="only one may"):
        both | VLMRequest(queries=nn.Embedding(1, 3))


def test_gather_takes_a_span_in_order():
    hidden = torch.arange(2 * 6 * 3, dtype=torch.float32).view(2, 6, 3).requires_grad_()
    span = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1]], dtype=torch.bool)
    out = VLMOutput({4: hidden}, torch.ones(2, 6, dtype=torch.bool), {"query": span})
    got = out.gather("query", 4, 3)
    expected = torch.stack([hidden[0, [1, 3, 4]], hidden[1, [0, 1, 5]]])
    assert torch.equal(got, expected)
    got.sum().backward()
    assert torch.equal(hidden.grad[..., 0] == 1, span)


def test_gather_of_a_long_sequence():
    torch.manual_seed(0)
    span = torch.stack([torch.randperm(500) < 40 for _ in range(4)])
    hidden = torch.randn(4, 500, 2)
    out = VLMOutput({0: hidden}, torch.ones_like(span), {"image": span})
    assert torch.equal(out.gather("image", 0, 40), hidden[span].view(4, 40, 2))


def test_fakes_honour_the_protocols():
    policy = tiny_policy()
    assert isinstance(policy.model.vlm, VisionLanguageModel)
    assert isinstance(policy.model.head, ActionHead)
    assert isinstance(FakeHead.build(FakeHead.Config(), HeadDims(4, 1, 2, 3)), ActionHead)
    assert not isinstance(policy.model.head, VisionLanguageModel)
    assert issubclass(FakeVLM, nn.Module)


def test_fake_backbone_runs_only_what_is_requested():
    policy = tiny_policy()
    from vla_core.testing import make_observation

    batch = policy.collate([make_observation(next(iter(policy.specs.values())))])
    calls = []
    for i, layer in enumerate(policy.model.vlm.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    text = policy.model.vlm.embed_text(batch)
    visual = policy.model.vlm.embed_images(batch.images, batch.view_mask)
    out = policy.model.vlm(text, visual, None, VLMRequest((0, 1)))
    assert sorted(out.hidden) == [0, 1]
    assert calls == [0]
