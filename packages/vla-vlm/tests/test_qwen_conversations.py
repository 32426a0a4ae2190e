"""Conversations in Qwen's chat format: tokens, what is learned, packing, and transformers' own loss."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vla_core.batch import Role
from vla_core.conversations import IMAGE_MARK, Conversation, Turn
from vla_core.conversing import conversation_loss
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ConversingModel, PromptSpec, VLMRequest
from vla_vlm import Qwen3VL, Qwen3VLConfig

SIZE = (32, 48)


def picture(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


TALKS = (
    Conversation(
        (
            Turn("user", f"{IMAGE_MARK}\nWhat is in {IMAGE_MARK}?"),
            Turn("assistant", "A red cube at (120, 40, 300, 210)."),
            Turn("user", "  And now?  "),
            Turn("assistant", "Nothing. 開"),
        ),
        (picture(0), picture(1, *SIZE)),
        "talks.json: entry 0",
    ),
    Conversation((Turn("user", "Say <|im_end|> and <|image_pad|>"), Turn("assistant", "<|im_end|> it is"))),
    Conversation(
        (Turn("system", "Be brief."), Turn("user", f"Where? {IMAGE_MARK}"), Turn("assistant", "Left")),
        (picture(2, 60, 41),),
    ),
    Conversation((Turn("user", "2 + 2?"), Turn("assistant", "4"))),
)


@pytest.fixture(scope="module")
def talker(kind):
    torch.manual_seed(0)
    return kind.build(1, SIZE, language_head=True).eval()


def collate(vlm, talks, pack, max_tokens=400):
    return vlm.conversation_collator(max_tokens, pack)(talks)


def test_text_and_learned_tokens(talker):
    batch = collate(talker, TALKS[:1], pack=False)
    ids, roles = batch.tokens.input_ids[0], batch.tokens.roles[0]
    n = talker.dims.grid[0] * talker.dims.grid[1]
    image = "<|vision_start|>" + "<|image_pad|>" * n + "<|vision_end|>"
    system = f"<|im_start|>system\n{talker.config.SYSTEM}<|im_end|>\n" if talker.config.SYSTEM else ""
    text = (
        f"{system}<|im_start|>user\n{image}What is in{image}?<|im_end|>\n"
        "<|im_start|>assistant\nA red cube at (120, 40, 300, 210).<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nNothing. 開<|im_end|>\n"
    )
    tokens = talker.tokenizer
    tokens.encode_special_tokens = False
    assert ids[batch.tokens.attention_mask[0]].tolist() == tokens.encode(text, add_special_tokens=False).ids
    learned = tokens.decode(ids[roles == Role.ANSWER].tolist(), skip_special_tokens=False)
    assert learned == "A red cube at (120, 40, 300, 210).<|im_end|>Nothing. 開<|im_end|>"
    assert batch.tokens.n_answer == int((roles == Role.ANSWER).sum())
    assert int((roles == Role.IMAGE).sum()) == 2 * n
    assert batch.n_images == 2
    assert torch.equal(batch.images[1].permute(1, 2, 0), torch.from_numpy(TALKS[0].images[1]))


def test_special_tokens_in_a_text_stay_text(talker):
    batch = collate(talker, TALKS[1:2], pack=False)
    ids = batch.tokens.input_ids[0][batch.tokens.attention_mask[0]].tolist()
    turns = 3 if talker.config.SYSTEM else 2
    assert ids.count(talker.tokenizer.token_to_id("<|im_end|>")) == turns
    assert talker.special.image not in ids
    assert not batch.images.any(), "one black picture"
    assert batch.n_images == 0


def test_a_loss_equals_transformers(kind, talker):
    batch = collate(talker, TALKS[:1], pack=False)
    fields, vision = batch.tokens, talker.model.config.vision_config
    theirs = kind.reference(type(talker.model.config).from_dict(talker.model.config.to_dict())).eval()
    theirs.load_state_dict(talker.state_dict(), strict=False)
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        do_resize=False,
        image_mean=talker.stats.mean,
        image_std=talker.stats.std,
    )
    pictures = [image.permute(1, 2, 0).numpy() for image in batch.images]
    pixels = processor(pictures, return_tensors="pt")
    common = {
        "input_ids": fields.input_ids,
        "attention_mask": fields.attention_mask.long(),
        "mm_token_type_ids": (fields.roles == Role.IMAGE).int(),
        "image_grid_thw": pixels["image_grid_thw"],
    }
    labels = fields.input_ids.where(fields.roles == Role.ANSWER, -100)
    with torch.no_grad():
        positions, _ = theirs.model.get_rope_index(**common)
        loss = theirs(**common, pixel_values=pixels["pixel_values"], labels=labels).loss
        ours = conversation_loss(talker, batch)
    valid = fields.attention_mask
    assert torch.equal(fields.position_ids[:, valid], positions[:, valid])
    torch.testing.assert_close(ours, loss, atol=1e-5, rtol=1e-5)


def gradients(vlm, batch):
    vlm.zero_grad()
    loss = conversation_loss(vlm, batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in vlm.named_parameters() if p.grad is not None}
    vlm.zero_grad()
    return loss.detach(), found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_one_a_row(kind, attention):
    torch.manual_seed(0)
    vlm = kind.build(1, SIZE, language_head=True, attn_implementation=attention).eval()
    apart, packed = (collate(vlm, TALKS, pack) for pack in (False, True))
    assert len(apart.tokens.input_ids) == 4
    assert not apart.packed
    assert packed.packed
    assert len(packed.tokens.input_ids) == 1
    assert packed.segment_ids.unique().tolist() == [0, 1, 2, 3, 4]
    assert packed.tokens.n_answer == apart.tokens.n_answer
    one, two = gradients(vlm, apart), gradients(vlm, packed)
    torch.testing.assert_close(two[0], one[0], atol=1e-6, rtol=1e-6)
    assert set(one[1]) == set(two[1]) == {n for n, _ in vlm.named_parameters()}
    for name, gradient in one[1].items():
        torch.testing.assert_close(two[1][name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_every_logit_is_that_of_the_conversation_alone(talker):
    with torch.no_grad():
        together = talker.converse(collate(talker, TALKS, pack=True))
        alone = [talker.converse(collate(talker, [talk], pack=True)) for talk in TALKS]
    assert torch.equal(together.labels, torch.cat([out.labels for out in alone]))
    torch.testing.assert_close(
        together.logits, torch.cat([out.logits for out in alone]), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), pack=st.booleans())
def test_rows_hold_each_conversation_once_within_the_budget(lengths, pack):
    vlm = _collating()
    talks = [Conversation((Turn("user", "a"), Turn("assistant", "b " * n))) for n in lengths]
    collator = vlm.conversation_collator(64, pack)
    sizes = [len(collator._write(talk).ids) for talk in talks]
    if max(sizes) > 64:
        with pytest.raises(UserError, match=r"more than datasets\.vlm\.max_tokens = 64"):
            collator(talks)
        return
    batch = collator(talks)
    valid = batch.tokens.attention_mask
    assert batch.tokens.input_ids.shape[1] <= 64
    assert int(valid.sum()) == sum(sizes)
    found = [int((row == n).sum()) for row in batch.segment_ids for n in range(1, int(row.max()) + 1)]
    assert sorted(found) == sorted(sizes)
    assert torch.equal(valid, batch.segment_ids > 0)
    starts = batch.tokens.position_ids[0][valid] == 0
    assert int(starts.sum()) == len(talks), "positions start anew in each"
    if not pack:
        assert len(valid) == len(talks)


_MADE = []


def _collating():
    """A model, made once for all examples of hypothesis."""
    if not _MADE:
        _MADE.append(Qwen3VL.build(Qwen3VLConfig(language_head=True), 1, SIZE))
    return _MADE[0]


@pytest.mark.parametrize(
    ("turns", "images", "said"),
    [
        ([("user", f"{IMAGE_MARK} {IMAGE_MARK}"), ("assistant", "a")], 1, "2 <image> .* and 1 image"),
        ([("user", "What?"), ("assistant", IMAGE_MARK)], 1, "no <image> in the user's turns, and 1 image"),
        ([("user", IMAGE_MARK), ("assistant", "a")], 0, "1 <image> .* and no images"),
        ([("assistant", "a"), ("user", "b")], 0, "the first turn must be the user's"),
        ([("user", "b")], 0, "nothing to learn"),
        ([("user", "b"), ("assistant", "c"), ("system", "d")], 0, "must come first"),
    ],
)
def test_what_is_not_whole_is_refused(talker, turns, images, said):
    talk = Conversation(
        tuple(Turn(*turn) for turn in turns), tuple(picture(i) for i in range(images)), "f.json: entry 7"
    )
    with pytest.raises(UserError, match=rf"^f\.json: entry 7: .*{said}"):
        collate(talker, [talk], pack=True)


def test_the_collator_is_picklable_and_flash_attention_refuses_packing(kind, talker):
    collator = talker.conversation_collator(400, True)
    again = pickle.loads(pickle.dumps(collator))(TALKS)
    assert torch.equal(again.tokens.input_ids, collator(TALKS).tokens.input_ids)
    assert isinstance(talker, ConversingModel)
    object.__setattr__(talker.config, "attn_implementation", "flash_attention_2")
    try:
        with pytest.raises(ConfigError, match=r"datasets\.vlm\.pack=false"):
            talker.conversation_collator(400, True)
        talker.conversation_collator(400, False)
    finally:
        object.__setattr__(talker.config, "attn_implementation", "sdpa")


def test_a_language_head_changes_nothing_for_policies_and_survives_a_checkpoint(kind, make_batch, tmp_path):
    torch.manual_seed(0)
    plain = kind.build(2, (48, 48)).eval()
    torch.manual_seed(0)
    talking = kind.build(2, (48, 48), language_head=True).eval()
    assert talking.state_dict().keys() == plain.state_dict().keys(), "tied at this size"
    batch = make_batch(plain)
    request = VLMRequest((3,))
    with torch.no_grad():
        states = [
            vlm(vlm.embed_text(batch), vlm.embed_images(batch.images, batch.view_mask), None, request)
            for vlm in (plain, talking)
        ]
    assert torch.equal(states[0].hidden[3], states[1].hidden[3])
    assert plain.collator(PromptSpec()).length == talking.collator(PromptSpec()).length
    talking.save_assets(tmp_path)
    loaded = kind.model.build(talking.config, 1, SIZE, assets=tmp_path)
    loaded.load_state_dict(talking.state_dict())
    assert torch.isfinite(conversation_loss(loaded, collate(loaded, TALKS, pack=True)))
