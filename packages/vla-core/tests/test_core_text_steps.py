from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from vla_core import ConfigError, Pipeline, images
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_observation, make_sample, make_spec

MADE = make_spec(n_cameras=1, height=20, width=24)
SPEC = replace(MADE, observation=replace(MADE.observation, state=MADE.observation.state[:1]))
BLIND = replace(MADE, observation=replace(MADE.observation, state=()))
# Statistics of one group of the state, as a dataset's would be.
_ALL = MADE.statistics["state"]
_OWN = VectorStats(**{k: v[:3] if k != "count" else v for k, v in _ALL.to_dict().items()})
SPEC = replace(SPEC, statistics=NormStats({"action": MADE.statistics["action"], "state": _OWN}))
NODES = [
    {"name": "normalize", "state": "none", "action": "none"},
    {"name": "random_shift", "pixels": 2},
    {"name": "state_as_text"},
]


def _observation(state):
    made = make_observation(SPEC, 0)
    return replace(made, instruction="open it", state=np.array(state, np.float32))


def test_the_state_moves_into_the_instruction():
    pipeline = Pipeline(NODES, SPEC)
    seen = pipeline.observe(_observation([-1.0, 0.0, 0.999]))
    assert seen.instruction == "open it [STATE] 0 128 255 [ACTION]"
    assert seen.state is None
    assert pipeline.output_spec.observation.state == ()
    # Outside the range: what digitising does, as the published models saw it.
    assert (
        pipeline.observe(_observation([-3.0, 3.0, 0.1])).instruction == "open it [STATE] -1 255 140 [ACTION]"
    )


def test_training_and_serving_write_the_same_words_also_after_a_random_step():
    sample = make_sample(SPEC, 3)
    trained = Pipeline(NODES, SPEC)(sample, np.random.default_rng(0))
    served = Pipeline(NODES, SPEC).observe(sample.observation)
    assert trained.observation.instruction == served.instruction != sample.observation.instruction
    assert trained.observation.state is None


def test_a_template_of_ones_own_keeps_braces_in_the_instruction():
    node = {"name": "state_as_text", "bins": 4, "template": "S {state} T {instruction}"}
    seen = Pipeline([node], SPEC).observe(replace(_observation([-0.9, 0.1, 0.9]), instruction="{state}"))
    assert seen.instruction == "S 0 2 3 T {state}"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"bins": 1}, "must be >= 2, got 1"),
        ({"template": "{instruction}"}, r"must contain \{state\} once"),
        ({"template": "{state} {state} {instruction}"}, r"must contain \{state\} once"),
    ],
)
def test_mistakes_are_named(node, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline([{"name": "state_as_text", **node}], SPEC)


def test_it_needs_a_state_and_comes_last():
    with pytest.raises(ConfigError, match="the robot has no state"):
        Pipeline([{"name": "state_as_text"}], BLIND)
    with pytest.raises(ConfigError, match="'state_as_text' must come after 'normalize'"):
        Pipeline([NODES[2], NODES[0]], SPEC)


def test_a_clean_instruction_is_one_line_of_words():
    observation = replace(_observation([0.0, 0.0, 0.0]), instruction=" pick_up the\nred block \n")
    seen = Pipeline([{"name": "clean_instruction"}], SPEC).observe(observation)
    assert seen.instruction == "pick up the red block"
    assert np.array_equal(seen.state, observation.state)


def test_resize_has_two_kernels():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((12, 10), Image.Resampling.BICUBIC))
    assert np.array_equal(images.resize(image, 10, 12, "bicubic"), expected)
    assert not np.array_equal(images.resize(image, 10, 12), expected)
    with pytest.raises(ConfigError, match="interpolation"):
        Pipeline([{"name": "resize", "interpolation": "nearest"}], SPEC)


GROUPS = {
    "name": "paraphrase",
    "groups": [["open it", "make it open", "pull it open"], ["close it", "shut it"]],
}


def test_a_sentence_is_drawn_from_its_group_while_training_alone():
    sample = make_sample(SPEC, 3)
    sample = replace(sample, observation=replace(sample.observation, instruction="open it"))
    pipeline = Pipeline([GROUPS, {"name": "clean_instruction"}], SPEC)
    rng = np.random.default_rng(0)
    drawn = [pipeline(sample, rng).observation.instruction for _ in range(300)]
    counts = {sentence: drawn.count(sentence) for sentence in GROUPS["groups"][0]}
    assert sum(counts.values()) == 300
    assert min(counts.values()) > 70
    assert pipeline.observe(sample.observation).instruction == "open it"
    again = np.random.default_rng(0)
    assert [pipeline(sample, again).observation.instruction for _ in range(300)] == drawn
    # As training does: the first half is kept, words are drawn anew each time.
    half = pipeline.deterministic(sample)
    assert len({pipeline.random(half, rng).observation.instruction for _ in range(50)}) == 3


def test_an_instruction_of_no_group_stays():
    sample = make_sample(SPEC, 3)
    seen = Pipeline([GROUPS], SPEC)(sample, np.random.default_rng(0))
    assert seen.observation.instruction == sample.observation.instruction


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"name": "paraphrase", "groups": [["open it"]]}], "needs two sentences or more"),
        ([{"name": "paraphrase", "groups": [["a", "b"], ["c", "a"]]}], "'a' is in groups twice"),
        ([GROUPS, *NODES], "'paraphrase' and 'state_as_text' do not go together"),
        ([*NODES, GROUPS], "'paraphrase' and 'state_as_text' do not go together"),
    ],
)
def test_sentences_that_cannot_be_drawn_are_refused(nodes, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline(nodes, SPEC)
