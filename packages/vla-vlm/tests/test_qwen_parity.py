"""The tiny model against transformers' own forward with the same weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vla_core.batch import Role
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm.common.pixels import patchify
from vla_vlm.common.text import Deepstack


def reference(kind, vlm):
    """transformers' model with the weights of ``vlm``."""
    config = type(vlm.model.config).from_dict(vlm.model.config.to_dict())
    config._attn_implementation = "eager"
    full = kind.reference(config).eval()
    missing, unexpected = full.load_state_dict(vlm.state_dict(), strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"])
    return full


def processed(vlm, images):
    vision = vlm.model.config.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        do_resize=False,
        image_mean=vlm.stats.mean,
        image_std=vlm.stats.std,
    )
    return processor([image.permute(1, 2, 0).numpy() for image in images.flatten(0, 1)], return_tensors="pt")


SIZES = [(1, (32, 32)), (2, (48, 48)), (2, (64, 64)), (2, (48, 80)), (1, (80, 32)), (2, (96, 64))]


@pytest.mark.parametrize(
    ("padding", "all_views"), [("right", True), ("right", False), ("left", True)], ids=str
)
@pytest.mark.parametrize(("n_views", "size"), SIZES)
def test_hidden_states_and_positions_equal_transformers(kind, make_batch, n_views, size, padding, all_views):
    vlm = kind.build(n_views, size, padding=padding).eval()
    batch = make_batch(vlm)
    batch.tokens.all_views = all_views  # known or not, the numbers are the same
    layers = tuple(range(vlm.dims.n_layers + 1))
    with torch.no_grad():
        out = vlm(
            vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), None, VLMRequest(layers)
        )
        theirs = reference(kind, vlm)
        pixels = processed(vlm, batch.images)
        fields = batch.tokens
        common = {
            "input_ids": fields.input_ids,
            "attention_mask": fields.attention_mask.long(),
            "mm_token_type_ids": (fields.roles == Role.IMAGE).int(),
            "image_grid_thw": pixels["image_grid_thw"],
        }
        positions, _ = theirs.model.get_rope_index(**common)
        hidden = theirs.model(
            **common, pixel_values=pixels["pixel_values"], output_hidden_states=True
        ).hidden_states
    assert torch.equal(fields.position_ids, positions)
    assert len(hidden) == len(layers)
    valid = fields.attention_mask
    assert not valid.all(), "the batch must have padding to test it"
    for layer in layers:
        torch.testing.assert_close(out.hidden[layer][valid], hidden[layer][valid], atol=1e-5, rtol=1e-5)


DEEPSTACKS = [  # blocks, position grid; the last is the published models' grid of positions
    ((0, 1, 2), 5),  # the last decoder layer gets features too
    ((3,), 12),  # 12 patches a side: nothing to interpolate
    ((), 48),
]


@pytest.mark.parametrize(("blocks", "grid"), DEEPSTACKS)
def test_deepstack_and_learned_positions_equal_transformers(qwen3, make_batch, blocks, grid):
    tiny = replace(qwen3.tiny, deepstack=blocks, position_grid=grid)
    vlm = qwen3.build(2, (96, 64), tiny=tiny).eval()
    batch = make_batch(vlm)
    fields, theirs, pixels = batch.tokens, reference(qwen3, vlm), processed(vlm, batch.images)
    with torch.no_grad():
        visual = vlm.embed_images(batch.images, batch.view_mask)
        out = vlm(vlm.embed_text(batch), visual, None, VLMRequest((0, 1, 2, 3)))
        features = theirs.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])
        hidden = theirs.model(
            input_ids=fields.input_ids,
            attention_mask=fields.attention_mask.long(),
            mm_token_type_ids=(fields.roles == Role.IMAGE).int(),
            **pixels,
            output_hidden_states=True,
        ).hidden_states
        plain = vlm(vlm.embed_text(batch), replace(visual, deepstack=None), None, VLMRequest((3,)))
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(visual.tokens.flatten(0, 1), features.pooler_output, **close)
    assert len(visual.deepstack or ()) == len(features.deepstack_features) == len(blocks)
    for ours, other in zip(visual.deepstack or (), features.deepstack_features, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), other, **close)
    valid = fields.attention_mask
    for layer, state in enumerate(hidden):
        torch.testing.assert_close(out.hidden[layer][valid], state[valid], **close)
    assert torch.equal(plain.hidden[3], out.hidden[3]) == (not blocks)


@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
def test_patches_equal_the_processor(kind, size):
    images = torch.randint(0, 256, (2, 2, 3, *size), dtype=torch.uint8)
    vlm = kind.build(2, size)
    theirs = processed(vlm, images)["pixel_values"]
    normalize = vlm.vision_runner.normalize
    ours = patchify(normalize(images.flatten(0, 1)), kind.tiny.patch_size, kind.tiny.merge_size).flatten(0, 1)
    theirs = theirs.view(len(ours), 3, 2, -1)  # channels, frames, pixels
    for frame in range(2):
        torch.testing.assert_close(ours, theirs[:, :, frame].flatten(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normalize(images.float() / 255), normalize(images), atol=1e-5, rtol=1e-5)


# Patch and window of the tiny tests, then of the published models: 5 x 3 tokens in windows of 2 x 2
# (four sizes of window), 8 x 8 in windows of 4 x 4 (all equal), 9 x 7.
LAYOUTS = [(8, 32, (80, 48), False), (14, 112, (224, 224), True), (14, 112, (252, 196), False)]


@pytest.mark.parametrize(("patch", "window", "size", "regular"), LAYOUTS)
def test_windowed_vision_tokens_equal_transformers(qwen25, patch, window, size, regular):
    vlm = qwen25.build(2, size, tiny=replace(qwen25.tiny, patch_size=patch, window_size=window)).eval()
    assert vlm.vision_runner.windows is not None
    assert vlm.vision_runner.windows.regular == regular
    images = torch.randint(0, 256, (2, 2, 3, *size), dtype=torch.uint8)
    pixels = processed(vlm, images)
    with torch.no_grad():
        ours = vlm.embed_images(images, torch.ones(2, 2, dtype=torch.bool)).tokens
        theirs = reference(qwen25, vlm).model.visual(
            pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]
        )
    torch.testing.assert_close(ours.flatten(0, 1), theirs.pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(48, 80), (64, 64)])
def test_eager_equals_sdpa(kind, make_batch, size):
    outs = []
    for attn in ("sdpa", "eager"):
        torch.manual_seed(0)
        vlm = kind.build(2, size, attn_implementation=attn).eval()
        assert vlm.model.language_model.config._attn_implementation == attn
        assert vlm.model.visual.config._attn_implementation == attn
        batch = make_batch(vlm)
        out = vlm(
            vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), None, VLMRequest((3,))
        )
        outs.append(out.hidden[3][out.mask])
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)


def test_chat_text_equals_the_processors_tokens(kind, vlm, sample):
    """One instruction's ids against the tokenizer run over the whole chat text at once."""
    text = "turn the faucet handle to the left"
    h, w = vlm.dims.grid
    image = "<|vision_start|>" + "<|image_pad|>" * (h * w) + "<|vision_end|>"
    # Qwen2.5's template begins with this when a chat brings no system message; Qwen3's doesn't.
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    chat = (
        f"{system if kind.name == 'qwen2_5_vl' else ''}<|im_start|>user\n"
        f"{image}{image}{text} Do 8 steps:<|im_end|>\n<|im_start|>assistant\n"
    )
    fields = vlm.collator(PromptSpec(suffix="Do 8 steps:"))([sample(text)])
    vlm.tokenizer.encode_special_tokens = False
    expected = vlm.tokenizer.encode(chat).ids
    ids = fields.input_ids[0][fields.attention_mask[0]].numpy()
    np.testing.assert_array_equal(ids, expected)


def test_states_as_transformers4_records_them(qwen3, make_batch):
    """After deepstack's features, the last one before the norm; vla-train's goldens are from there."""
    outs, vlms = [], []
    for recorded in ("transformers5", "transformers4"):
        torch.manual_seed(0)
        vlm = qwen3.build(2, (64, 64), hidden_states=recorded).eval()
        vlm.add_answers(SimpleNamespace(tokens=("<a0>", "<a1>"), max_length=4))
        batch = make_batch(vlm)
        with torch.no_grad():
            visual = vlm.embed_images(batch.images, batch.view_mask)
            outs.append(vlm(vlm.embed_text(batch), visual, None, VLMRequest((0, 1, 2, 3), decoder=4)))
        vlms.append(vlm)
    ours, raw = (out.hidden for out in outs)
    index = (batch.tokens.roles == Role.IMAGE).nonzero()[:, 1].view(len(batch.images), -1)
    deepstack = Deepstack(index, visual.deepstack)
    assert torch.equal(raw[0], ours[0])
    assert torch.equal(raw[1], deepstack.add(ours[1], 1))
    assert torch.equal(raw[2], deepstack.add(ours[2], 2))
    assert torch.equal(vlms[1].language_model.norm(raw[3]), ours[3])
    # What is spoken is read after the norm under both.
    logits = [out.decoder.logits for out in outs]
    assert torch.equal(*logits)
    # A state is the same whether later layers run or not.
    with torch.no_grad():
        alone = vlms[1](vlms[1].embed_text(batch), visual, None, VLMRequest((1,)))
    assert torch.equal(alone.hidden[1], raw[1])
