"""The action tokenizer: round trips within the rounding, any words of a chunk, the published format."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.trainers import BpeTrainer
from vla_core.errors import ConfigError
from vla_heads.fast import ActionTokenizer, measure
from vla_heads.fast.alphabet import CODES, codes_of
from vla_heads.fast.grammar import NEVER, Grammar
from vla_heads.fast.transform import cosines, hold, quantise

T, A, SCALE = 8, 3, 10.0
BOUND = np.sqrt(T) / (2 * SCALE) + 1e-6


def smooth(count: int, seed: int = 0, horizon: int = T) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.1, (count, horizon, A)).cumsum(axis=1)
    return list(np.clip(steps + rng.uniform(-0.5, 0.5, (count, 1, A)), -1, 1).astype(np.float32))


def published(directory, chunks, **config):
    """A tokenizer as its own recipe fits one: GPT-2's word split, and an alphabet of raw characters."""
    found = [quantise(chunk, SCALE) for chunk in chunks]
    low, high = (int(f(c)) for f, c in ((np.min, np.array(found)), (np.max, np.array(found))))
    bpe = ByteLevelBPETokenizer()
    trainer = BpeTrainer(
        vocab_size=300,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(i) for i in range(high - low + 1)],
        max_token_length=10000,
    )
    bpe._tokenizer.train_from_iterator(("".join(map(chr, (c - low).ravel())) for c in found), trainer)
    bpe.save(str(directory / "tokenizer.json"))
    values = {"scale": SCALE, "vocab_size": 300, "min_token": low, "time_horizon": None, "action_dim": None}
    (directory / "processor_config.json").write_text(json.dumps({**values, **config}))
    return low


@pytest.fixture(scope="module")
def tokenizer() -> ActionTokenizer:
    return ActionTokenizer.fit(smooth(500), T, A, vocab_size=400, scale=SCALE)


def test_the_transform_is_the_orthonormal_dct():
    matrix = cosines(5)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(matrix[0], 1 / np.sqrt(5))
    # By its definition: 2 sum x cos(pi (t + 1/2) k / T), scaled by sqrt(1 / 2T).
    x, t = np.random.default_rng(0).normal(size=5), np.arange(5)
    by_sum = [2 * (x * np.cos(np.pi * k * (2 * t + 1) / 10)).sum() * np.sqrt(1 / 10) for k in (1, 3)]
    np.testing.assert_allclose((matrix @ x)[[1, 3]], by_sum)


@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (T, A), elements=st.floats(-1, 1, width=32)))
def test_a_round_trip_is_within_the_rounding(tokenizer, x):
    ids = tokenizer.encode(x)
    assert np.abs(tokenizer.decode(ids) - x).max() <= BOUND
    np.testing.assert_array_equal(tokenizer.coefficients(x), quantise(x, SCALE))


@settings(max_examples=30, deadline=None)
@given(x=arrays(np.float32, (T, A), elements=st.floats(-1e6, 1e6, width=32)))
def test_what_is_too_large_is_clipped_never_lost(tokenizer, x):
    out = tokenizer.decode(tokenizer.encode(x))
    assert out.shape == (T, A)
    np.testing.assert_array_equal(quantise(out, SCALE), tokenizer.coefficients(x))


def allowed_walk(grammar: Grammar, rows: int, room: int, seed: int) -> list[list[int]]:
    """Random ids, each among the allowed ones."""
    generator = torch.Generator().manual_seed(seed)
    said, spoken = grammar.start(rows), [[] for _ in range(rows)]
    for i in range(room):
        allowed = grammar.allowed(said, room - i)
        going = said.missing > 0
        assert torch.equal(allowed.any(dim=1), going)
        ids = torch.multinomial(allowed.float() + 1e-30, 1, generator=generator)[:, 0]
        for row in going.nonzero()[:, 0].tolist():
            spoken[row].append(int(ids[row]))
        said = grammar.after(said, ids)
    assert not said.missing.any()
    assert not said.half.any()
    return spoken


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spare=st.integers(0, 40))
def test_any_allowed_words_are_a_chunk(tokenizer, seed, spare):
    grammar = Grammar(tokenizer.pieces, T * A)
    room = grammar.shortest + spare
    for ids in allowed_walk(grammar, 4, room, seed):
        assert len(ids) <= room
        assert tokenizer.decode(ids).shape == (T, A)


def test_words_may_end_in_half_a_character():
    """Ids for single bytes, and some that cut two-byte characters in two."""
    pieces = [bytes([b]) for b in range(256)] + [b"a\xc3", b"\xa9b", b"\xa9\xc3", b"", b"\xe2\x82\xac"]
    grammar = Grammar(pieces, 5)
    assert grammar.shortest == 4  # such as a+half, half+half, half+b, c
    for seed in range(20):
        for ids in allowed_walk(grammar, 3, 7, seed):
            codes = codes_of(b"".join(pieces[i] for i in ids))
            assert codes is not None
            assert len(codes) == 5
    start = grammar.allowed(grammar.start(1), 5)[0]
    assert start[ord("x")]
    assert start[256]
    assert not start[[0xA9, 257, 259, 260, 0xC0, 0xE2]].any()
    assert not start[[0xC3]].any() or grammar.cost[5, 1] < 5
    none = Grammar([b"ab"], 3)
    assert none.shortest >= NEVER


def test_every_chunk_of_the_data_can_be_said(tokenizer):
    """Training never writes what inference would forbid."""
    grammar = Grammar(tokenizer.pieces, T * A)
    for chunk in smooth(50, seed=1):
        ids, said = tokenizer.encode(chunk), grammar.start(1)
        for i, word in enumerate(ids):
            assert grammar.allowed(said, len(ids) - i)[0, word]
            said = grammar.after(said, torch.tensor([word]))
        assert said.missing.item() == 0


def test_other_ids_are_refused(tokenizer):
    ids = tokenizer.encode(smooth(1)[0])
    with pytest.raises(ValueError, match=r"coefficients, a chunk has 8 x 3"):
        tokenizer.decode(ids[:-1])
    with pytest.raises(ValueError, match="no text"):
        tokenizer.decode([tokenizer.bpe.token_to_id("Ã")])
    with pytest.raises(ValueError, match=r"expected a chunk \(8, 3\)"):
        tokenizer.encode(np.zeros((3, 8)))


def test_fitting_compresses_and_the_report_says_how_well(tokenizer):
    held_out = smooth(100, seed=2)
    report = measure(tokenizer, held_out)
    assert (report.chunks, report.values) == (100, T * A)
    lengths = [len(tokenizer.encode(chunk)) for chunk in held_out]
    assert report.tokens_mean == np.mean(lengths)
    assert report.tokens_max == max(lengths)
    assert report.compression == T * A / np.mean(lengths) > 1.5
    errors = np.abs(np.stack([tokenizer.decode(tokenizer.encode(c)) for c in held_out]) - np.stack(held_out))
    assert report.error_mean == pytest.approx(errors.mean())
    assert report.error_max == pytest.approx(errors.max())
    assert 0 < report.error_max <= BOUND
    assert report.clipped == 0
    assert measure(tokenizer, [np.full((T, A), -9.0)]).clipped == pytest.approx(1 / T)
    unfitted = measure(ActionTokenizer.fit([], T, A, 256, SCALE), held_out)
    assert unfitted.compression == 1
    assert unfitted.error_max == report.error_max


def test_a_fit_depends_on_the_data_alone():
    """Each process of a run fits its own."""
    code = """if True:
        import numpy as np
        from vla_heads.fast import ActionTokenizer
        data = np.random.default_rng(0).normal(0, 0.2, (300, 8, 3)).cumsum(axis=1)
        print(ActionTokenizer.fit(data, 8, 3, 400, 10.0).bpe.to_str())
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    data = np.random.default_rng(0).normal(0, 0.2, (300, T, A)).cumsum(axis=1)
    assert run.stdout.strip() == ActionTokenizer.fit(data, T, A, 400, SCALE).bpe.to_str()


def test_files_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    chunk = smooth(1, seed=3)[0]
    for again in (ActionTokenizer.load(tmp_path, T, A), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode(chunk) == tokenizer.encode(chunk)
        np.testing.assert_array_equal(
            again.decode(again.encode(chunk)), tokenizer.decode(tokenizer.encode(chunk))
        )
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert {config["time_horizon"], config["action_dim"]} == {T, A}
    # As the published processor reads it: characters of the decoded text, plus min_token.
    text = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode(tokenizer.encode(chunk))
    coefficients = np.array([ord(c) for c in text]).reshape(T, A) + config["min_token"]
    np.testing.assert_array_equal(coefficients, quantise(chunk, SCALE))


def test_a_published_tokenizer_is_read(tmp_path):
    low = published(tmp_path, smooth(300))
    ours = ActionTokenizer.load(tmp_path, T, A)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (ours.min_token, ours.vocab_size) == (low, 300)
    for chunk in smooth(100, seed=1):
        codes = np.maximum(quantise(chunk, SCALE) - low, 0)
        ids = theirs.encode("".join(map(chr, codes.ravel()))).ids
        if len(theirs.decode(ids)) == T * A:
            assert ours.encode(chunk) == ids
        # Where it has no token for a byte it loses a coefficient; here the nearest takes its place.
        assert ours.decode(ours.encode(chunk)).shape == (T, A)
    grammar = Grammar(ours.pieces, T * A)
    for ids in allowed_walk(grammar, 3, grammar.shortest + 20, 0):
        assert ours.decode(ids).shape == (T, A)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer.json: no such file; name a directory with"):
        ActionTokenizer.load(tmp_path, T, A)
    published(tmp_path, smooth(50), time_horizon=16)
    with pytest.raises(ConfigError, match=r"time_horizon is 16, this policy has 8; fit another"):
        ActionTokenizer.load(tmp_path, T, A)
    published(tmp_path, smooth(50), vocab_size=100)
    with pytest.raises(ConfigError, match=r"ids, more than its vocab_size 100"):
        ActionTokenizer.load(tmp_path, T, A)
    published(tmp_path, smooth(50), scale="ten")
    with pytest.raises(ConfigError, match=r"'scale' must be a number"):
        ActionTokenizer.load(tmp_path, T, A)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    published_config = {"scale": 1, "vocab_size": 300, "min_token": 0}
    (tmp_path / "processor_config.json").write_text(json.dumps(published_config))
    with pytest.raises(ConfigError, match=r"tokenizer.json: not a byte-pair encoding"):
        ActionTokenizer.load(tmp_path, T, A)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"processor_config.json: not JSON"):
        ActionTokenizer.load(tmp_path, T, A)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"must hold a JSON object"):
        ActionTokenizer.load(tmp_path, T, A)
    with pytest.raises(ConfigError, match=rf"more than {CODES} values; lower it"):
        ActionTokenizer.fit(smooth(2), T, A, 400, scale=1000.0)


def test_masked_entries_follow_from_the_others():
    x = np.arange(12.0).reshape(4, 3)
    mask = np.ones((4, 3), bool)
    mask[2:, 0] = False
    mask[0, 1] = False
    mask[:, 2] = False
    out = hold(x, mask, 5, 4)
    assert out[:, 0].tolist() == [0, 3, 3, 3, 3]
    assert out[:, 1].tolist() == [4, 4, 7, 10, 10]
    assert not out[:, 2:].any()
    np.testing.assert_array_equal(out, hold(np.where(mask, x, np.nan), mask, 5, 4))
