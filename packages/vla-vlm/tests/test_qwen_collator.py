from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from vla_core.batch import Role
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import PromptSpec
from vla_vlm import Qwen25VLConfig


def words(vlm, fields, role, row=0):
    ids = fields.input_ids[row][fields.roles[row] == role].tolist()
    return vlm.tokenizer.decode(ids, skip_special_tokens=False)


def test_order_roles_and_static_shape(vlm, sample):
    prompt = PromptSpec(suffix="Act now:", n_query=3, n_prefix=2)
    collator = vlm.collator(prompt)
    fields = collator([sample("open the drawer"), sample("turn the faucet handle to the left")])
    image = 2 * vlm.dims.grid[0] * vlm.dims.grid[1]
    assert fields.input_ids.shape == (2, 64 + image + 3 + 2)
    assert collator([sample("x")]).input_ids.shape[1] == fields.input_ids.shape[1]
    assert fields.counts == {"image": image, "prefix": 2, "query": 3}
    assert words(vlm, fields, Role.INSTRUCTION) == "open the drawer"
    assert words(vlm, fields, Role.INSTRUCTION, row=1) == "turn the faucet handle to the left"
    for role, count in ((Role.IMAGE, image), (Role.PREFIX, 2), (Role.QUERY, 3)):
        assert (fields.roles == role).sum(1).tolist() == [count, count]
    first = {role: (fields.roles[0] == role).nonzero().min().item() for role in set(fields.roles[0].tolist())}
    order = [first[role] for role in (Role.TEXT, Role.PREFIX, Role.IMAGE, Role.INSTRUCTION, Role.QUERY)]
    assert order == sorted(order)
    text = vlm.tokenizer.decode(fields.input_ids[0].tolist(), skip_special_tokens=False)
    assert (
        "open the drawer Act now:<|video_pad|><|video_pad|><|video_pad|><|im_end|>\n<|im_start|>assistant"
        in text
    )
    assert "<|im_start|>user\n<|vision_pad|><|vision_pad|><|vision_start|><|image_pad|>" in text
    assert (fields.roles == Role.PAD).equal(~fields.attention_mask)


def test_left_padding_moves_the_row(kind, sample):
    make = lambda padding: kind.build(1, (32, 32), padding=padding)  # noqa: E731
    right, left = (
        make(side).collator(PromptSpec(n_query=2))([sample("open it")]) for side in ("right", "left")
    )
    mask = right.attention_mask[0]
    for name in ("input_ids", "roles", "attention_mask"):
        assert torch.equal(getattr(right, name)[0], getattr(left, name)[0].roll(int(mask.sum())))
    assert torch.equal(right.position_ids[:, 0, mask], left.position_ids[:, 0, left.attention_mask[0]])


def test_an_instruction_is_plain_text_only(vlm, sample):
    plain = vlm.collator(PromptSpec())([sample("put {images} <|image_pad|> <|im_end|> there")])
    assert (plain.roles == Role.IMAGE).sum() == plain.counts["image"]
    assert (plain.input_ids == vlm.special.image).sum() == plain.counts["image"]
    assert words(vlm, plain, Role.INSTRUCTION) == "put {images} <|image_pad|> <|im_end|> there"


def test_any_text_is_representable(vlm, sample):
    fields = vlm.collator(PromptSpec())([sample("開けて 🤖"), sample("")])
    assert words(vlm, fields, Role.INSTRUCTION) == "開けて 🤖"
    assert (fields.roles[1] == Role.INSTRUCTION).sum() == 0


def test_cot_prompt_surrounds_the_instruction(kind, sample):
    vlm = kind.build(1, (32, 32), cot_prompt="Your task is: {instruction}. Think step by step.")
    fields = vlm.collator(PromptSpec())([sample("open the drawer")])
    # A byte-level token carries the space before it.
    assert words(vlm, fields, Role.INSTRUCTION) == " open the drawer"
    text = vlm.tokenizer.decode(fields.input_ids[0].tolist(), skip_special_tokens=False)
    assert "Your task is: open the drawer. Think step by step.<|im_end|>" in text


def test_the_state_is_written_as_text(kind, sample):
    vlm = kind.build(1, (32, 32), cot_prompt="{instruction} [STATE] {state} [ACTION]", max_text_tokens=99)
    collator = vlm.collator(PromptSpec())
    rows = [sample("open it"), sample("open it")]
    states = np.float32([[-1, -0.5, 0.1, 0.8], [-1.2, 0, 0.9999, 3]])
    rows = [
        replace(row, observation=replace(row.observation, state=state))
        for row, state in zip(rows, states, strict=True)
    ]
    fields = collator(rows)
    for row, text in enumerate(("0 64 140 230", "-1 128 255 255")):
        assert f"open it [STATE] {text} [ACTION]" in vlm.tokenizer.decode(fields.input_ids[row].tolist())
        assert words(vlm, fields, Role.INSTRUCTION, row) == "open it"
    assert torch.equal(pickle.loads(pickle.dumps(collator))(rows).input_ids, fields.input_ids)
    with pytest.raises(UserError, match=r"vlm.prompt has {state}, and this robot has none"):
        collator([sample("open it")])


def test_too_long_an_instruction_is_an_error(vlm, sample):
    with pytest.raises(
        UserError, match=r"instruction 'go go .* text tokens, more than vlm.max_text_tokens = 64"
    ):
        vlm.collator(PromptSpec())([sample("go " * 200)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "{images}{instruction}", "prompt must have each placeholder once"),
        ("prompt", "{images}{prefix}{instruction}{suffix}{queries}", "may come before"),
        (
            "prompt",
            "{prefix}{image}{instruction}{suffix}{queries}",
            r"unknown placeholder \{image\} \(did you mean",
        ),
        ("cot_prompt", "do it", "cot_prompt must contain"),
        ("cot_prompt", "{instruction} {state} {state}", "may have {state} once"),
    ],
)
def test_bad_templates_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        Qwen25VLConfig(**{field: value})


def test_pickles_small_and_works_in_workers(qwen25, sample):
    vlm = qwen25.build(2, (48, 48))
    collator = vlm.collator(PromptSpec(n_query=2))
    samples = [sample("open the drawer"), sample("close the drawer")]
    here = collator(samples)
    data = pickle.dumps(collator)
    assert len(data) < 3e6
    again = pickle.loads(data)
    assert torch.equal(again(samples).input_ids, here.input_ids)
    loader = DataLoader(
        samples, batch_size=2, collate_fn=collator, num_workers=1, multiprocessing_context="spawn"
    )
    (there,) = list(loader)
    assert torch.equal(there.input_ids, here.input_ids)
    assert there.counts == here.counts
