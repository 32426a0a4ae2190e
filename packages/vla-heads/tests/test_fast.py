"""The FAST head over a backbone that is a table: what it learns, and what it says."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from vla_core.answers import NO_LABEL, FittedHead
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import ActionHead, HeadDims, HeadInputs, VLMOutput
from vla_core.shard import in_step
from vla_heads import FASTConfig, FASTHead
from vla_heads.fast.draw import gumbel, row_keys

T, A = 8, 3
DIMS = HeadDims(hidden_size=8, n_layers=2, action_dim=A, horizon=T)
MASK = np.ones((T, A), bool)


def smooth(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.1, (count, T, A)).cumsum(axis=1)
    return list(np.clip(steps + rng.uniform(-0.5, 0.5, (count, 1, A)), -1, 1).astype(np.float32))


def chunks():
    return ((chunk, MASK) for chunk in smooth(300))


def build(data=chunks, dims=DIMS, **options) -> FASTHead:
    config = FASTConfig(**{"vocab_size": 400, **options})
    head = FASTHead.build(config, dims)
    with tempfile.TemporaryDirectory() as learned:
        FASTHead.fit(config, data, dims.horizon, dims.action_dim, Path(learned))
        head.load_assets(Path(learned))
    return head


class Table:
    """A decoder with given logits ``[B, L, N]``, whatever it is fed; it remembers that."""

    def __init__(self, logits):
        self.all, self.fed = logits, []
        self.logits = logits[:, 0]

    def step(self, ids):
        self.fed.append(ids)
        return self.all[:, len(self.fed)]


def spoken(head, logits, noise=None):
    rows = len(logits)
    out = VLMOutput({}, torch.ones(rows, 1, dtype=torch.bool), {}, decoder=Table(logits))
    noise = torch.zeros(rows, T, A) if noise is None else noise
    return head.sample(HeadInputs(out), noise), out.decoder


def test_it_is_a_fitted_head_that_speaks():
    head = build()
    assert isinstance(head, ActionHead)
    assert isinstance(head, FittedHead)
    assert not list(head.parameters())
    assert not head.state_dict()
    answer = head.prompt.answer_ids
    assert answer.tokens[7] == "<robot_action_7>"
    assert len(answer.tokens) == 400
    lengths = [len(head.answer.tokenizer.encode(chunk)) for chunk in smooth(300)]
    assert answer.max_length == math.ceil(1.5 * max(lengths))
    assert head.request("train").logits == "labels"
    assert head.request("train").decoder == 0
    assert head.request("sample").decoder == answer.max_length
    assert head.request("sample").logits == "none"


def test_like_starvla_all_that_follows_the_answer_is_learned():
    head = build(compat="starvla")
    assert head.prompt.closing == "<|im_end|>\n<|im_start|>assistant\n"
    assert (head.request("train").logits, head.request("sample").logits) == ("vocabulary", "none")
    logits, labels = torch.randn(7, 900), torch.randint(900, (7,))
    out = VLMOutput({}, torch.ones(2, 1, dtype=torch.bool), {}, logits=logits, labels=labels)
    actions = torch.full((2, T, A), float("nan"))
    loss = head(HeadInputs(out), actions, actions.isnan())["action_loss"]
    assert loss.item() == pytest.approx(-logits.log_softmax(-1)[range(7), labels].mean().item(), rel=1e-6)
    with pytest.raises(ConfigError, match="compat: 'openvla' must be 'none' or 'starvla'"):
        build(compat="openvla")


def test_the_loss_is_cross_entropy_over_labels():
    head = build()
    logits = torch.randn(2, 5, 400, requires_grad=True)
    labels = torch.tensor([[3, 1, 399, NO_LABEL, NO_LABEL], [7, NO_LABEL, NO_LABEL, NO_LABEL, NO_LABEL]])
    out = VLMOutput({}, torch.ones(2, 1, dtype=torch.bool), {}, logits=logits, labels=labels)
    actions = torch.full((2, T, A), float("nan"))
    loss = head(HeadInputs(out), actions, actions.isnan())["action_loss"]
    parts = logits.log_softmax(-1)
    expected = -(parts[0, 0, 3] + parts[0, 1, 1] + parts[0, 2, 399] + parts[1, 0, 7]) / 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert not logits.grad[labels == NO_LABEL].any()
    out.labels = torch.full_like(labels, NO_LABEL)
    assert head(HeadInputs(out), actions, actions.isnan())["action_loss"].item() == 0
    out.logits, out.labels = logits.detach().bfloat16(), labels
    assert head(HeadInputs(out), actions, actions.isnan())["action_loss"].dtype == torch.float32


def test_what_is_masked_is_not_in_the_answer():
    answer = build().prompt.answer_ids
    chunk, mask = smooth(1)[0], MASK.copy()
    mask[5:] = False
    mask[:, 2] = False
    ids = answer(chunk, mask)
    other = np.where(mask, chunk, 1e9).astype(np.float32)
    assert answer(other, mask) == ids
    assert answer(chunk, MASK) != ids
    assert answer(chunk, np.zeros_like(mask)) == []
    # A robot with fewer steps and dims than the policy has.
    assert answer(chunk[:5, :2], mask[:5, :2]) == ids
    np.testing.assert_allclose(build().answer.tokenizer.decode(ids)[:5, :2], chunk[:5, :2], atol=0.15)


def test_a_confident_backbone_is_understood():
    head = build()
    room = head.answer.max_length
    logits = torch.randn(3, room, 400)
    targets = smooth(3, seed=5)
    for row, chunk in enumerate(targets):
        for i, word in enumerate(head.answer.tokenizer.encode(chunk)):
            logits[row, i, word] = 50
    actions, decoder = spoken(head, logits)
    assert actions.dtype == torch.float32
    np.testing.assert_allclose(actions, np.stack(targets), atol=0.15)
    # It was fed its own words, and no longer than the longest answer.
    longest = max(len(head.answer.tokenizer.encode(chunk)) for chunk in targets)
    assert len(decoder.fed) == longest - 1
    assert decoder.fed[0].tolist() == [head.answer.tokenizer.encode(chunk)[0] for chunk in targets]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_backbone_says_is_a_chunk(temperature, seed):
    """Noise, spite (the same word for ever) and silence (all alike)."""
    head = build(temperature=temperature, max_tokens=30)
    torch.manual_seed(seed)
    logits = torch.randn(4, 30, 400) * 10
    logits[1] = 0
    logits[1, :, int(torch.randint(400, ()))] = 1e4
    logits[2] = 0
    noise = torch.randn(4, T, A)
    actions, _ = spoken(head, logits, noise)
    assert actions.shape == (4, T, A)
    assert actions.isfinite().all()
    for row in range(4):
        alone, _ = spoken(head, logits[row : row + 1], noise[row : row + 1])
        assert torch.equal(alone[0], actions[row])


def test_where_layers_gather_it_speaks_as_long_as_any_process():
    """A step that another process takes alone waits for ever."""
    head = build(max_tokens=40)
    logits = torch.randn(2, 40, 400)
    for row, chunk in enumerate(smooth(2, seed=5)):
        for i, word in enumerate(head.answer.tokenizer.encode(chunk)):
            logits[row, i, word] = 50
    actions, decoder = spoken(head, logits)
    asked = []

    def five_more(here):
        asked.append(here)
        return here or asked.count(False) <= 5

    with in_step(five_more):
        same, longer = spoken(head, logits)
    assert torch.equal(same, actions)
    assert len(longer.fed) == len(decoder.fed) + 5
    assert asked == sorted(asked, reverse=True)


def test_the_smallest_room_suffices():
    head = build()
    shortest = head.grammar.shortest
    tight = build(max_tokens=shortest)
    actions, decoder = spoken(tight, torch.randn(2, shortest, 400))
    assert actions.shape == (2, T, A)
    assert len(decoder.fed) == shortest - 1
    with pytest.raises(
        ConfigError, match=rf"max_tokens: {shortest - 1} is too short, .* at least {shortest}"
    ):
        build(max_tokens=shortest - 1)
    with pytest.raises(UserError, match=r"needs \d+ tokens, more than head.max_tokens = "):
        tight.prompt.answer_ids(np.random.default_rng(0).uniform(-1, 1, (T, A)).astype(np.float32), MASK)


def test_temperature_draws_with_the_rows_noise():
    noise = torch.randn(2, T, A)
    noise[1] = noise[0]
    logits = torch.randn(1, 60, 400).expand(2, -1, -1)
    greedy, _ = spoken(build(max_tokens=60), logits, torch.randn(2, T, A))
    assert torch.equal(greedy, spoken(build(max_tokens=60), logits, noise)[0])
    head = build(temperature=1.0, max_tokens=60)
    same, _ = spoken(head, logits, noise)
    assert torch.equal(same[0], same[1])
    other, _ = spoken(head, logits, torch.randn(2, T, A))
    assert not torch.equal(other[0], other[1])
    assert not torch.equal(other[0], same[0])
    cold, _ = spoken(build(temperature=1e-6, max_tokens=60), logits, noise)
    assert torch.equal(cold, greedy)


def test_draws_follow_softmax():
    keys = row_keys(torch.randn(20_000, 3))
    assert len(keys.unique()) == 20_000
    chance = torch.tensor([0.1, 0.2, 0.7])
    for step in (0, 9):
        drawn = (chance.log() + gumbel(keys, step, 3)).argmax(dim=1)
        counts = torch.bincount(drawn, minlength=3) / len(keys)
        torch.testing.assert_close(counts, chance, atol=0.015, rtol=0)
    first, second = (gumbel(keys[:1000], step, 50).flatten() for step in (0, 1))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.02


def test_what_it_learned_goes_through_assets(tmp_path):
    head = build(max_tokens=None)
    head.save_assets(tmp_path)
    again = FASTHead.build(FASTConfig(), DIMS)
    again.load_assets(tmp_path)
    assert again.answer.max_length == head.answer.max_length
    chunk = smooth(1)[0]
    assert again.prompt.answer_ids(chunk, MASK) == head.prompt.answer_ids(chunk, MASK)
    given = build(tokenizer=str(tmp_path))
    assert given.answer.tokenizer.encode(chunk) == head.answer.tokenizer.encode(chunk)
    assert given.answer.max_length == head.answer.max_length
    assert build(data=None, tokenizer=str(tmp_path)).answer.max_length == 2 * T * A
    (tmp_path / "answer.json").unlink()
    with pytest.raises(ConfigError, match=r"answer.json: no such file"):
        again.load_assets(tmp_path)


def test_without_data_a_chunk_is_said_byte_by_byte():
    head = build(data=None)
    assert head.answer.tokenizer.bpe.get_vocab_size() == 256
    assert head.grammar.shortest == T * A
    assert len(head.prompt.answer_ids.tokens) == 400


@pytest.mark.parametrize(
    ("option", "value"), [("vocab_size", 255), ("scale", 0), ("max_tokens", 0), ("temperature", -1)]
)
def test_bad_config(option, value):
    with pytest.raises(ConfigError, match=rf"{option}: must be .*, got {value}"):
        FASTConfig(**{option: value})
    with pytest.raises(ConfigError, match="cannot read the head context"):
        FASTHead.build(FASTConfig(), HeadDims(8, 2, A, T, context_dim=4))
