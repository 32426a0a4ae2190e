from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vla_core.batch import Role
from vla_core.interfaces import PromptSpec, VisionLanguageModel, VLMRequest
from vla_core.registry import load
from vla_vlm.common.pixels import patchify
from vla_vlm.qwen.stem import ConvStem
from vla_vlm.qwen.vision import VisionRunner


def run(vlm, batch, request, prefix=None):
    return vlm(vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), prefix, request)


def queries(vlm, n):
    torch.manual_seed(3)
    return nn.Embedding(n, vlm.dims.hidden_size)


def test_is_found_by_entry_point_and_keeps_the_protocol(kind, vlm):
    assert load("vla.vlms", kind.name) is kind.model
    assert isinstance(vlm, VisionLanguageModel)
    assert vlm.dims.grid == (3, 3)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_runs_exactly_the_requested_layers(vlm, make_batch, layer):
    calls = {"decoder": 0, "vision": 0, "block": 0}
    hooks = []

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for decoder in vlm.model.language_model.layers:
        hooks.append(decoder.register_forward_hook(count("decoder")))
    hooks.append(vlm.vision_runner.register_forward_hook(count("vision")))
    for block in vlm.model.visual.blocks:
        hooks.append(block.register_forward_hook(count("block")))
    out = run(vlm, make_batch(vlm), VLMRequest((layer,)))
    for hook in hooks:
        hook.remove()
    assert calls == {"decoder": layer, "vision": 1, "block": len(vlm.model.visual.blocks)}
    assert set(out.hidden) == {layer}
    # There is nothing that could compute logits.
    vocab = vlm.model.config.text_config.vocab_size
    assert not [m for m in vlm.modules() if isinstance(m, nn.Linear) and m.out_features == vocab]


def test_no_request_runs_nothing_and_a_missing_layer_is_an_error(vlm, make_batch):
    batch = make_batch(vlm)
    assert run(vlm, batch, VLMRequest()).hidden == {}
    with pytest.raises(
        ValueError, match=r"requested layers \[4\] don't exist: the model has 0 \(embeddings\) to 3"
    ):
        run(vlm, batch, VLMRequest((1, 4)))


def test_reserved_tokens_are_overwritten(vlm, make_batch):
    batch = make_batch(vlm, PromptSpec(n_query=3, n_prefix=2))
    embedding = queries(vlm, 3)
    prefix = torch.randn(len(batch), 2, vlm.dims.hidden_size)
    visual = vlm.embed_images(batch.images, batch.view_mask)
    assert visual.grid == (2, 3, 3)
    out = vlm(vlm.embed_text(batch), visual, prefix, VLMRequest((0, 3), embedding))
    assert torch.equal(out.gather("image", 0, 18), visual.tokens)
    assert torch.equal(out.gather("prefix", 0, 2), prefix)
    assert torch.equal(out.gather("query", 0, 3), embedding.weight.expand(len(batch), -1, -1))
    text = vlm.embed_text(batch).embeds
    rest = ~(out.spans["image"] | out.spans["prefix"] | out.spans["query"])
    assert torch.equal(out.hidden[0][rest], text[rest])
    out.hidden[3].sum().backward()
    assert embedding.weight.grad.abs().sum() > 0
    vlm.zero_grad()


def test_a_wrong_number_of_tokens_names_both(vlm, make_batch):
    batch = make_batch(vlm, PromptSpec(n_query=3))
    with pytest.raises(ValueError, match="prompt has 3 query tokens, but 4 query embeddings were given"):
        run(vlm, batch, VLMRequest((1,), queries(vlm, 4)))
    with pytest.raises(ValueError, match="prompt has 3 query tokens, but 0 query embeddings were given"):
        run(vlm, batch, VLMRequest((1,)))
    with pytest.raises(ValueError, match="prompt has 0 prefix tokens, but 2 prefix tokens of the fusion"):
        run(vlm, batch, VLMRequest((1,), queries(vlm, 3)), prefix=torch.zeros(4, 2, 64))
    visual = vlm.embed_images(batch.images, batch.view_mask)
    fewer = replace(visual, tokens=visual.tokens[:, :9], mask=visual.mask[:, :9])
    with pytest.raises(ValueError, match="prompt has 18 image tokens, but 9 visual tokens were given"):
        vlm(vlm.embed_text(batch), fewer, None, VLMRequest((1,), queries(vlm, 3)))
    by_hand = replace(batch, tokens=replace(batch.tokens, counts=None))
    with pytest.raises(ValueError, match="prompt has 3 query tokens, but 4"):
        run(vlm, by_hand, VLMRequest((1,), queries(vlm, 4)))
    with pytest.raises(
        ValueError, match=r"images are \[4, 1, 3, 48, 48\], the model was built for \[B, 2, 3, 48, 48\]"
    ):
        vlm.embed_images(batch.images[:, :1], batch.view_mask[:, :1])


def test_deepstack_reaches_the_image_tokens_of_the_right_layers(qwen3, make_batch):
    vlm = qwen3.build(2, (48, 48)).eval()
    batch = make_batch(vlm)
    visual = vlm.embed_images(batch.images, batch.view_mask)
    assert [tuple(x.shape) for x in visual.deepstack] == [tuple(visual.tokens.shape)] * 2
    silent = replace(visual, deepstack=tuple(torch.zeros_like(x) for x in visual.deepstack))
    text, request = vlm.embed_text(batch), VLMRequest((0, 1, 2, 3))
    ours, none = vlm(text, visual, None, request), vlm(text, silent, None, request)
    for layer in (0, 1):  # features come after a layer's own output
        assert torch.equal(ours.hidden[layer], none.hidden[layer])
    assert not torch.equal(ours.gather("image", 2, 18), none.gather("image", 2, 18))
    before = batch.tokens.roles.eq(Role.IMAGE).int().argmax(1).min()  # causal: earlier text sees no image
    for layer in (2, 3):
        assert torch.equal(ours.hidden[layer][:, :before], none.hidden[layer][:, :before])
    # A changed token, as a fusion makes one, leaves them as they are.
    changed = replace(visual, tokens=visual.tokens + 1)
    assert changed.deepstack is visual.deepstack
    ours.hidden[3].sum().backward()
    for merger in vlm.model.visual.deepstack_merger_list:
        assert merger.linear_fc2.weight.grad.abs().sum() > 0
    assert vlm.model.visual.pos_embed.weight.grad.abs().sum() > 0


def test_a_missing_view_is_masked(vlm, make_batch):
    batch = make_batch(vlm)
    batch.view_mask[1, 0] = False
    changed = copy.deepcopy(batch)
    changed.images[1, 0] = 255 - changed.images[1, 0]
    with torch.no_grad():
        a, b = run(vlm, batch, VLMRequest((3,))), run(vlm, changed, VLMRequest((3,)))
    assert torch.equal(a.hidden[3][a.mask], b.hidden[3][b.mask])
    full = batch.tokens.attention_mask
    assert (full & ~a.mask).sum(1).tolist() == [0, 9, 0, 0]
    assert a.spans["image"].sum(1).tolist() == [18, 9, 18, 18]
    assert torch.isfinite(a.hidden[3]).all()


MASKS = [  # padding, all_views, whether a row lacks a view, dtype; what attention is given
    ("right", True, False, torch.float32, "causal"),
    ("right", True, False, torch.bfloat16, "causal"),
    ("right", False, False, torch.float32, "mask"),
    ("right", False, True, torch.float32, "mask"),
    ("left", True, False, torch.float32, "mask"),
]


@pytest.mark.parametrize(("padding", "all_views", "lacks_view", "dtype", "expected"), MASKS)
def test_attention_takes_a_mask_only_where_one_is_needed(
    kind, make_batch, monkeypatch, padding, all_views, lacks_view, dtype, expected
):
    vlm = kind.build(2, (48, 48), padding=padding).eval().to(dtype)
    batch = make_batch(vlm)
    batch.view_mask[1, 0] = not lacks_view
    with torch.no_grad():
        masked = run(vlm, batch, VLMRequest((3,)))
        batch.tokens.all_views = all_views
        visual = vlm.embed_images(batch.images, batch.view_mask)
        calls = []
        attend = nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v, **how: calls.append((how, k.shape[1])) or attend(q, k, v, **how),
        )
        out = vlm(vlm.embed_text(batch), visual, None, VLMRequest((3,)))
    assert len(calls) == 3
    for how, kv_heads in calls:
        causal = how["attn_mask"] is None and how["is_causal"] and how["enable_gqa"]
        assert causal == (expected == "causal")
        assert kv_heads == (kind.tiny.n_kv_heads if causal else kind.tiny.n_heads), "copied only with a mask"
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert not masked.mask.all()
    assert torch.equal(out.mask, masked.mask)
    torch.testing.assert_close(
        out.hidden[3][out.mask], masked.hidden[3][masked.mask], atol=tolerance, rtol=tolerance
    )
    assert out.hidden[3].isfinite().all()


def test_rows_of_a_batch_do_not_touch_each_other(vlm, make_batch):
    batch = make_batch(vlm)
    solo = make_batch(vlm, instructions=("turn the faucet handle to the left",))
    solo.images = batch.images[:1]
    with torch.no_grad():
        together, alone = run(vlm, batch, VLMRequest((3,))), run(vlm, solo, VLMRequest((3,)))
    torch.testing.assert_close(together.hidden[3][:1], alone.hidden[3], atol=1e-5, rtol=1e-5)


def test_bfloat16_keeps_tables_in_float32(kind, make_batch):
    torch.manual_seed(0)
    vlm = kind.build(2, (48, 48)).eval()
    batch = make_batch(vlm)
    with torch.no_grad():
        exact = run(vlm, batch, VLMRequest((3,)))
        cosines = vlm.vision_runner.rope.cos.clone()
        vlm.to(torch.bfloat16)
        half = run(vlm, batch, VLMRequest((3,)))
    assert torch.equal(vlm.vision_runner.rope.cos, cosines)
    assert vlm.rope.inv_freq.dtype == torch.float32
    assert vlm.vision_runner.normalize.mean.dtype == torch.float32
    assert half.hidden[3].dtype == torch.bfloat16
    a, b = exact.hidden[3][exact.mask].flatten(), half.hidden[3][half.mask].float().flatten()
    assert torch.cosine_similarity(a, b, dim=0) > 0.999
    built = kind.build(1, (32, 32), dtype="bfloat16", vision="conv_vit")
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("vision", ["vit", "conv_vit"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, make_batch, vision):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vlm = kind.build(2, (48, 48), gradient_checkpointing=checkpointing, vision=vision).train()
        calls = []
        vlm.model.language_model.layers[0].input_layernorm.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        out = run(vlm, make_batch(vlm), VLMRequest((3,)))
        out.hidden[3][out.mask].square().sum().backward()
        assert len(calls) == 1 + checkpointing
        grads.append({n: p.grad.clone() for n, p in vlm.named_parameters() if p.grad is not None})
        assert set(grads[-1]) == {n for n, _ in vlm.named_parameters()}
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


class NoSync(TorchDispatchMode):
    """Refuses the operations that make the host wait for the device."""

    bad = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not any(name == bad or name.startswith(("unique", "nonzero")) for bad in self.bad), name
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "boolean index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(48, 48), (64, 64)])
def test_forward_and_backward_never_wait_for_the_device(kind, make_batch, size):
    vlm = kind.build(2, size)
    batch = make_batch(vlm, PromptSpec(n_query=2, n_prefix=1))
    embedding, prefix = queries(vlm, 2), torch.randn(len(batch), 1, 64)
    with NoSync():
        out = run(vlm, batch, VLMRequest((1, 3), embedding), prefix)
        (out.hidden[1].sum() + out.gather("query", 3, 2).sum()).backward()


def test_traces_without_graph_breaks(vlm, make_batch):
    batch = make_batch(vlm)
    batch.tokens.all_views = True
    layer = VLMRequest((3,))

    def step(batch):
        return run(vlm, batch, layer).hidden[3]

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), step(batch))


def test_parts_are_reachable_by_prefix(vlm):
    names = [name for name, _ in vlm.named_parameters()]
    prefixes = ("model.visual.", "model.language_model.")
    assert all(name.startswith(prefixes) for name in names)
    assert all(any(name.startswith(p) for name in names) for p in prefixes)
    assert set(vlm.state_dict()) == set(names), "tables are no part of a checkpoint"
    assert not list(VisionRunner.parameters(vlm.vision_runner))


def test_conv_stem_takes_the_patch_embeddings_place(kind, make_batch):
    vlm = kind.build(2, (48, 80), vision="conv_vit")
    out = run(vlm, make_batch(vlm), VLMRequest((3,)))
    assert vlm.dims.grid == (3, 5)
    assert out.hidden[3].isfinite().all()
    assert any(name.startswith("model.visual.patch_embed.layers.") for name in vlm.state_dict())


def test_conv_stem_orders_tokens_as_patches_and_adds_coordinates():
    stem = ConvStem(width=16, patch_size=8, merge=2)
    stem.layers = nn.Sequential(nn.AvgPool2d(8))  # a token is then the mean of its patch
    images = torch.rand(2, 3, 96, 64)
    tokens = stem(images)
    assert tokens.shape == (2, 96, 5)
    patches = patchify(images, 8, 2).view(2, 96, 3, 64)
    torch.testing.assert_close(tokens[..., :3], patches.mean(-1))
    # Tokens of the first block of 2 x 2: its rows, then its columns.
    y, x = tokens[0, :4, 3], tokens[0, :4, 4]
    assert y[0] == y[1] < y[2] == y[3]
    assert x[0] == x[2] < x[1] == x[3]
