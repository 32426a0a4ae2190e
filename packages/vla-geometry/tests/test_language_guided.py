"""The instruction selects geometry, and word order counts."""

import pytest
import torch
from vla_core.batch import TokenFields
from vla_core.interfaces import TextTokens
from vla_geometry import LanguageGuided
from vla_geometry.fusions._instruction import text_columns

A, ON, TO = 0, 1, 2


def say(vocabulary, *words, start=1, length=8):
    """A row whose instruction is ``words``, from column ``start``."""
    embeds, mask = torch.zeros(1, length, 16), torch.zeros(1, length, dtype=torch.bool)
    embeds[0, start : start + len(words)] = vocabulary[list(words)]
    mask[0, start : start + len(words)] = True
    fields = TokenFields(torch.zeros(1, length, dtype=torch.long), mask, mask.to(torch.uint8))
    return TextTokens(embeds, mask, mask, fields)


@pytest.fixture
def words():
    """Embeddings of A, 'on' and B."""
    return torch.randn(3, 16)


@pytest.fixture
def one_row(inputs):
    inputs.visual.tokens, inputs.visual.mask = inputs.visual.tokens[:1], inputs.visual.mask[:1]
    inputs.geometry.tokens = inputs.geometry.tokens[:1]
    return inputs


def build(dims):
    return LanguageGuided.build(LanguageGuided.Config(width=24, depth=1, n_heads=2), dims)


def test_weights_are_one_on_average_share(dims, inputs):
    weights = build(dims).weights(inputs.visual, inputs.geometry, inputs.text)
    assert weights.shape == (3, 2, 2, 3)
    assert (weights > 0).all()
    assert (weights < 2).all()
    # The share of the attention comes back from 2 r / (1 + r).
    ratio = weights / (2 - weights)
    assert torch.allclose(ratio.mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-5)
    inputs.hide_view(1, 0)
    weights = build(dims).weights(inputs.visual, inputs.geometry, inputs.text)
    assert not weights[1, 0].any()
    inputs.text.instruction_mask[2] = False
    assert (build(dims).weights(inputs.visual, inputs.geometry, inputs.text)[2] == 1).all()


def test_word_order_and_nothing_else_about_the_prompt(dims, one_row, words):
    fusion = build(dims)

    def weights(text):
        return fusion.weights(one_row.visual, one_row.geometry, text)

    there = weights(say(words, A, ON, TO))
    back = weights(say(words, TO, ON, A))
    assert (there - back).abs().max() > 1e-3
    # Padding on either side and room behind change nothing.
    for start, length in ((0, 8), (4, 8), (1, 20)):
        assert torch.allclose(weights(say(words, A, ON, TO, start=start, length=length)), there, atol=1e-6)


def test_learns_that_a_on_b_is_not_b_on_a(dims, one_row, words):
    """A few steps teach it to pick the first object; a bag of words cannot tell the two apart."""
    fusion = build(dims)
    tokens = one_row.geometry.tokens
    tokens[0, 0, 0, 1], tokens[0, 1, 1, 2] = words[A, :12] * 2, words[TO, :12] * 2
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    texts = [say(words, A, ON, TO), say(words, TO, ON, A)]

    def picks():
        """Weights of A and B for each of the two instructions."""
        weights = [fusion.weights(one_row.visual, one_row.geometry, text)[0] for text in texts]
        return torch.stack([torch.stack([w[0, 0, 1], w[1, 1, 2]]) for w in weights])

    for _ in range(60):
        optimizer.zero_grad()
        weight = picks()
        (weight[0, 1] - weight[0, 0] + weight[1, 0] - weight[1, 1]).backward()
        optimizer.step()
    (a_first, b_second), (a_second, b_first) = picks().tolist()
    assert a_first > 1.5 > 0.5 > b_second
    assert b_first > 1.5 > 0.5 > a_second


def test_instruction_columns(inputs):
    assert text_columns(inputs.text).tolist() == [[15, 16, 17, 18, 0, 1]] * 3  # 20 columns, 14 reserved
    inputs.text.fields.counts = None
    assert text_columns(inputs.text).shape == (3, 20)
