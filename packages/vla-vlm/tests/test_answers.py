"""Answers: written at collate, predicted where the labels are, and spoken with kept keys and values."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vla_core.answers import NO_LABEL
from vla_core.batch import Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, VLMRequest

N, ROOM = 6, 5


class Words:
    """The answer of a sample is its first actions, rounded."""

    tokens = tuple(f"<robot_action_{i}>" for i in range(N))
    max_length = ROOM

    def __call__(self, actions, mask):
        return [int(value) for value in actions[mask]]


PROMPT = PromptSpec(suffix="Act:", answer_ids=Words())
ANSWERS = ([1, 5, 0], [2, 2, 2, 4, 3], [0], [])


def build(kind, **options):
    torch.manual_seed(0)
    vlm = kind.build(2, (48, 48), **options).eval()
    vlm.add_answers(Words())
    return vlm


@pytest.fixture
def with_answers(sample, make_batch):
    """A training batch whose rows have ``answers``."""

    def make(vlm, answers=ANSWERS, prompt=PROMPT):
        batch = make_batch(vlm, prompt)
        rows = [
            replace(
                sample(text),
                actions=np.float32(answer).reshape(-1, 1),
                action_mask=np.ones((len(answer), 1), bool),
            )
            for text, answer in zip(
                ("turn the faucet handle to the left", "open the drawer", "Reach! 開けて 🤖", ""),
                answers,
                strict=True,
            )
        ]
        batch.tokens = vlm.collator(prompt)(rows, answers=True)
        return batch

    return make


def run(vlm, batch, request):
    visual = vlm.embed_images(batch.images, batch.view_mask)
    return vlm(vlm.embed_text(batch), visual, None, request)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_collator_writes_answers_after_the_prompt(kind, make_batch, with_answers, padding):
    vlm = build(kind, padding=padding)
    prompt, fields = make_batch(vlm, PROMPT).tokens, with_answers(vlm).tokens
    assert fields.input_ids.shape[1] == prompt.input_ids.shape[1] + ROOM
    first = vlm.tokenizer.token_to_id("<robot_action_0>")
    for row, answer in enumerate(ANSWERS):
        seen, length = fields.attention_mask[row], int(prompt.attention_mask[row].sum())
        ids = fields.input_ids[row, seen]
        assert torch.equal(ids[:length], prompt.input_ids[row, prompt.attention_mask[row]])
        assert ids[length:].tolist() == [first + i for i in answer]
        assert fields.labels[row].tolist() == answer + [NO_LABEL] * (ROOM - len(answer))
        roles = fields.roles[row, seen]
        assert (roles[length:] == Role.ANSWER).all()
        assert (roles[:length] != Role.ANSWER).all()
        positions = fields.position_ids[:, row, seen]
        steps = positions[:, length:] - positions[:, length - 1 : length]
        assert torch.equal(steps, (1 + torch.arange(len(answer))).expand(3, -1))
    assert prompt.labels is None
    assert fields.right_padded == (padding == "right")


@pytest.mark.parametrize("padding", ["right", "left"])
def test_logits_are_the_reference_models_at_the_labels(kind, with_answers, padding):
    """The language head of transformers' model, over all positions and the whole vocabulary."""
    vlm = build(kind, padding=padding)
    batch = with_answers(vlm)
    hidden = run(vlm, batch, VLMRequest((vlm.dims.n_layers,)))
    out = run(vlm, batch, VLMRequest(logits="labels"))
    assert not out.hidden
    assert out.decoder is None
    assert out.logits.shape == (4, ROOM, N)
    assert torch.equal(out.labels, batch.tokens.labels)
    assert torch.equal(out.spans["answer"].sum(1), torch.tensor([len(a) for a in ANSWERS]))
    full = hidden.hidden[vlm.dims.n_layers] @ vlm.model.language_model.embed_tokens.weight.T
    first = vlm.tokenizer.token_to_id("<robot_action_0>")
    for row, answer in enumerate(ANSWERS):
        columns = (batch.tokens.roles[row] == Role.ANSWER).nonzero()[:, 0] - 1
        torch.testing.assert_close(
            out.logits[row, : len(answer)], full[row, columns, first : first + N], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("padding", ["right", "left"])
def test_over_the_vocabulary_only_what_is_learned_has_logits(kind, make_batch, with_answers, padding):
    vlm = build(kind, padding=padding)
    closed = replace(PROMPT, closing="done.")
    batch = with_answers(vlm, prompt=closed)
    done = vlm.collator(closed).closing
    assert vlm.tokenizer.decode(list(done)) == "done."
    assert make_batch(vlm, closed).tokens.n_answer == 0
    full = run(vlm, batch, VLMRequest((vlm.dims.n_layers,))).hidden[vlm.dims.n_layers]
    full = full @ vlm.model.language_model.embed_tokens.weight.T
    out = run(vlm, batch, VLMRequest(logits="vocabulary"))
    first = vlm.tokenizer.token_to_id("<robot_action_0>")
    expected = [[*(first + i for i in answer), *done] for answer in ANSWERS if answer]
    assert out.labels.tolist() == [token for row in expected for token in row]
    assert out.logits.shape == (batch.tokens.n_answer, full.shape[-1])
    rows, columns = (batch.tokens.roles == Role.ANSWER).nonzero(as_tuple=True)
    torch.testing.assert_close(out.logits, full[rows, columns - 1], atol=1e-5, rtol=1e-5)


def test_a_closing_that_the_tokenizer_lacks_is_refused(kind):
    with pytest.raises(ConfigError, match=r"'<\|no_such\|>'.*use a Qwen backbone, or compat: none"):
        build(kind).collator(replace(PROMPT, closing="<|no_such|>\n"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_decoder_says_what_the_whole_sequence_says(kind, make_batch, with_answers, padding, attention):
    vlm = build(kind, padding=padding, attn_implementation=attention)
    answers = ([1, 5, 0, 3, 2], [2, 2, 2, 4, 3], [0, 1, 2, 3, 4], [5, 4, 3, 2, 1])
    batch = make_batch(vlm, PROMPT)
    batch.view_mask[1, 0] = False
    whole = with_answers(vlm, answers)
    whole.view_mask[1, 0] = False
    with torch.no_grad():
        expected = run(vlm, whole, VLMRequest(logits="labels")).logits
        decoder = run(vlm, batch, VLMRequest(decoder=ROOM - 1)).decoder
        spoken = [decoder.logits]
        for i in range(ROOM - 1):
            spoken.append(decoder.step(torch.tensor(answers)[:, i]))
    torch.testing.assert_close(torch.stack(spoken, 1), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"room for 4 ids"):
        decoder.step(torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_written_answer_is_not_seen_by_who_speaks(kind, make_batch, with_answers, padding):
    """Validation asks for chunks on batches with targets."""
    vlm = build(kind, padding=padding)
    batch, written = make_batch(vlm, PROMPT), with_answers(vlm)
    with torch.no_grad():
        clean, other = (run(vlm, b, VLMRequest(decoder=2)).decoder for b in (batch, written))
        torch.testing.assert_close(clean.logits, other.logits, atol=1e-5, rtol=1e-5)
        ids = torch.tensor([3, 1, 0, 2])
        torch.testing.assert_close(clean.step(ids), other.step(ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="a decoder speaks without seeing it"):
        run(vlm, written, VLMRequest(logits="labels", decoder=2))


def test_rows_speak_alone_as_together(kind, make_batch):
    vlm = build(kind)
    batch = make_batch(vlm, PROMPT)
    solo = copy.copy(batch)
    solo.images, solo.view_mask = batch.images[1:2], batch.view_mask[1:2]
    solo.tokens = make_batch(vlm, PROMPT, ("open the drawer",)).tokens
    with torch.no_grad():
        together, alone = (run(vlm, b, VLMRequest(decoder=2)).decoder for b in (batch, solo))
        torch.testing.assert_close(together.logits[1:2], alone.logits, atol=1e-5, rtol=1e-5)
        ids = torch.tensor([3, 1, 0, 2])
        torch.testing.assert_close(together.step(ids)[1:2], alone.step(ids[1:2]), atol=1e-5, rtol=1e-5)


def test_tokens_are_appended_with_rows_of_their_own(kind):
    torch.manual_seed(0)
    vlm = kind.build(2, (48, 48))
    weight = vlm.model.language_model.embed_tokens.weight.detach().clone()
    size = vlm.tokenizer.get_vocab_size()
    vlm.add_answers(Words())
    assert [vlm.tokenizer.token_to_id(text) for text in Words.tokens] == list(range(size, size + N))
    grown = vlm.model.language_model.embed_tokens
    assert grown.num_embeddings == len(weight) + N == vlm.model.config.text_config.vocab_size
    assert torch.equal(grown.weight[: len(weight)], weight)
    assert (grown.weight[len(weight) :].std(dim=1) > 0).all()
    assert vlm.lm_head is None, "tied"
    assert vlm.answer_modules == ["model.language_model.embed_tokens"]
    # Typed into an instruction, they are plain text.
    (row,) = vlm.collator(PROMPT)._make_row("say <robot_action_1>").ids[None]
    assert (row < size).all()
    before = len(grown.weight)
    vlm.add_answers(Words())
    assert len(vlm.model.language_model.embed_tokens.weight) == before


@pytest.mark.parametrize("tied", [True, False])
def test_they_survive_assets_and_weights(tmp_path, kind, with_answers, tied):
    vlm = build(kind)
    if not tied:
        vlm.model.config.tie_word_embeddings = False
        vlm.lm_head = vlm.make_head()
    vlm.save_assets(tmp_path)
    again = kind.build(2, (48, 48), tmp_path).eval()
    again.add_answers(Words())
    assert ("lm_head.weight" in vlm.state_dict()) == (not tied)
    again.load_state_dict(vlm.state_dict())
    batch = with_answers(vlm)
    assert torch.equal(with_answers(again).tokens.input_ids, batch.tokens.input_ids)
    first, second = (run(m, batch, VLMRequest(logits="labels")).logits for m in (vlm, again))
    assert torch.equal(first, second)


def test_a_published_head_of_its_own_is_read(tmp_path, kind, with_answers):
    """As the larger models have one: the head's rows are the file's, and the answer's are new."""
    vlm = kind.build(2, (48, 48))
    vlm.save_assets(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    full = kind.reference(kind.model.family.config_class.from_pretrained(tmp_path))
    full.save_pretrained(tmp_path)
    head = full.lm_head.weight.detach()
    loaded = kind.build(2, (48, 48), base_vlm=str(tmp_path))
    assert "lm_head.weight" not in loaded.state_dict(), "nobody speaks yet"
    loaded.add_answers(Words())
    assert torch.equal(loaded.lm_head.weight[: len(head)], head)
    assert loaded.answer_modules == ["lm_head", "model.language_model.embed_tokens"]
    assert len(loaded.lm_head.weight) == loaded.lm_head.out_features == len(head) + N
    run(loaded, with_answers(loaded), VLMRequest(logits="labels")).logits.sum().backward()
    assert loaded.lm_head.weight.grad[len(head) :].any()
    assert not loaded.lm_head.weight.grad[: len(head)].any()
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"'lm_head.weight' is missing, expected \[\d+, 64\]"):
        kind.build(2, (48, 48), base_vlm=str(tmp_path)).add_answers(Words())


def test_mistakes(kind, make_batch):
    vlm = build(kind)
    with pytest.raises(ValueError, match="this batch has no answers; collate for training"):
        run(vlm, make_batch(vlm, PROMPT), VLMRequest(logits="labels"))
    vlm.tokenizer.add_special_tokens(["<other>"])

    class More(Words):
        tokens = (*Words.tokens, "<robot_action_6>")

    with pytest.raises(ConfigError, match="out of order or in part"):
        vlm.add_answers(More())
