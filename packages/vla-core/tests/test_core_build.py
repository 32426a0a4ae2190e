from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from vla_core import CameraSpec, ConfigError
from vla_core.assemble import build_policy
from vla_core.config import build_config, load_tree
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import KVDims, PromptSpec, VLMRequest
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.testing import FakeHead, FakeVLM, make_sample, make_spec

SPEC = make_spec()
FAKE = {"vlm": {"name": "fake"}, "head": {"name": "fake"}}
pytestmark = pytest.mark.usefixtures("fakes")


def _error(specs=None, **fields) -> str:
    with pytest.raises(ConfigError) as error:
        build_policy(
            FrameworkConfig(**{"horizon": 4, **FAKE, **fields}), {"default": SPEC} if specs is None else specs
        )
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("part", ["vlm", "head"])
def test_a_part_that_is_not_set(part):
    rest = {k: v for k, v in FAKE.items() if k != part}
    with pytest.raises(ConfigError, match=rf"^'framework.{part}' must be set$"):
        build_config(FrameworkConfig, rest, "framework")
    with pytest.raises(ConfigError, match=rf"^'framework.{part}' must be set, e.g. {part}: {{name: ...}}$"):
        build_policy(FrameworkConfig(horizon=4, **rest), {"default": SPEC})


def test_a_part_without_a_name_or_with_an_unknown_one():
    message = _error(vlm={"hidden_size": 3})
    assert message.startswith("'framework.vlm.name' must name a part (known: ")
    assert "fake" in message
    assert _error(head={"name": "fak"}).startswith(
        "framework.head.name: no 'fak' in vla.heads (did you mean 'fake'"
    )


def test_a_wrong_key_of_a_part():
    message = _error(vlm={"name": "fake", "hiden_size": 3})
    assert message == "unknown key 'framework.vlm.hiden_size' (did you mean 'hidden_size'?)"
    assert (
        _error(vlm={"name": "fake", "n_layers": "two"})
        == "'framework.vlm.n_layers': expected an int, got 'two'"
    )


def test_file_and_line(write):
    text = "framework:\n  horizon: 4\n  vlm: {name: fake}\n  head:\n    name: fake\n    noise_scal: 1\n"
    path = write("run.yaml", text)
    tree = load_tree([path])
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    with pytest.raises(ConfigError, match=rf"^{path}:6: unknown key 'framework.head.noise_scal'"):
        build_policy(config, {"default": SPEC}, tree=tree)
    tree = load_tree([path], ["framework.head={name: fke}"])
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    with pytest.raises(ConfigError, match=r"^command line: framework.head.name: no 'fke'"):
        build_policy(config, {"default": SPEC}, tree=tree)
    bad = write("bad.yaml", "framework:\n  vlm: {name: fake}\n  head: {name: fake}\n  horizon: 0\n")
    tree = load_tree([bad])
    with pytest.raises(ConfigError, match=rf"^{bad}:4: 'framework.horizon': must be >= 1, got 0$"):
        build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    steps = write("steps.yaml", "framework:\n  transforms:\n  - name: resize\n  - name: normalise\n")
    tree = load_tree([path, steps], ["framework.head={name: fake, noise_scale: 1}"])
    tree.data["framework"]["head"].pop("noise_scal")
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    with pytest.raises(ConfigError, match=rf"^{steps}:4: .*no transform 'normalise' \(did"):
        build_policy(config, {"default": SPEC}, tree=tree)


@pytest.mark.parametrize("given", [{}, {"geometry": {"name": "x"}}, {"fusion": {"name": "x"}}])
def test_a_branch_that_is_demanded_but_not_configured(given):
    message = _error(use_geometric_branch=True, **given)
    assert message.startswith(
        "framework.use_geometric_branch is true, so framework.geometry and framework.fusion"
    )


def test_half_a_branch():
    assert "framework.fusion is not set" in _error(geometry={"name": "x"})
    assert "framework.geometry is not set" in _error(fusion={"name": "x"})
    config = FrameworkConfig(horizon=4, use_geometric_branch=False, geometry={"name": "x"}, **FAKE)
    policy = build_policy(config, {"default": SPEC})
    assert policy.model.geometry is None
    assert policy.config["geometry"] is None
    assert policy.config["use_geometric_branch"] is False


def test_cameras_of_different_sizes():
    cameras = (CameraSpec("a", 32, 32), CameraSpec("b", 24, 32))
    spec = replace(SPEC, observation=replace(SPEC.observation, cameras=cameras))
    message = _error({"default": spec})
    assert "different sizes [(24, 32), (32, 32)]; add {name: resize, height: ..., width: ...}" in message
    config = FrameworkConfig(horizon=4, transforms=[{"name": "resize", "height": 16, "width": 16}], **FAKE)
    assert build_policy(config, {"default": spec}).collator.size == (16, 16)


def test_errors_between_sections_name_the_line(write):
    head = "framework:\n  vlm: {name: fake}\n  head: {name: fake}\n"
    cameras = (CameraSpec("a", 32, 32), CameraSpec("b", 24, 32))
    uneven = replace(SPEC, observation=replace(SPEC.observation, cameras=cameras))
    for line, spec, message in [
        ("  horizon: 9\n", SPEC, "4: embodiment 'default' has horizon 4, framework.horizon is 9"),
        ("  use_geometric_branch: true\n  horizon: 4\n", SPEC, "4: framework.use_geometric_branch is true"),
        ("  transforms: []\n  horizon: 4\n", uneven, "4: cameras have different sizes"),
    ]:
        path = write("run.yaml", head + line)
        tree = load_tree([path])
        config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
        with pytest.raises(ConfigError) as error:
            build_policy(config, {"default": spec}, tree=tree)
        assert str(error.value).startswith(f"{path}:{message}")


def test_no_camera_and_wrong_horizon():
    blind = replace(SPEC, observation=replace(SPEC.observation, cameras=()))
    assert "the robot spec has no camera" in _error({"default": blind})
    assert "no camera" in _error({})
    assert _error(horizon=8) == "embodiment 'default' has horizon 4, framework.horizon is 8"


def test_the_resolved_config_builds_the_same_policy():
    config = FrameworkConfig(name="Mine", horizon=4, transforms=[{"name": "normalize"}], **FAKE)
    policy = build_policy(config, {"default": SPEC})
    again = build_config(FrameworkConfig, policy.config, "framework")
    second = build_policy(again, {"default": SPEC})
    assert second.config == policy.config
    shapes = [{k: v.shape for k, v in p.model.state_dict().items()} for p in (policy, second)]
    assert shapes[0] == shapes[1]


class Words:
    tokens, max_length = ("<a>", "<b>"), 3

    def __call__(self, actions, mask):
        return [int(actions[mask].sum() > 0)] * self.max_length


class SpeakingHead(FakeHead):
    """Sees the data, and wants its answer written and spoken."""

    @classmethod
    def fit(cls, config, chunks, horizon, action_dim, directory):
        seen = None if chunks is None else [(a.tolist(), m.tolist()) for a, m in chunks()]
        (directory / "seen.json").write_text(json.dumps(seen))

    def save_assets(self, directory):
        (directory / "seen.json").write_text(json.dumps(self.seen))

    def load_assets(self, directory):
        self.seen = json.loads((directory / "seen.json").read_text())

    @property
    def prompt(self):
        return PromptSpec(answer_ids=Words())

    def request(self, mode):
        return VLMRequest(layers=(2,), logits="labels" if mode == "train" else "none", decoder=3)


class SpeakingVLM(FakeVLM):
    """Knows the answer's tokens; its collator writes how long the answers are."""

    def __init__(self, config, n_views):
        super().__init__(config, n_views)
        self.dims, self.added = replace(self.dims, decoder=True), None

    def add_answers(self, answer_ids):
        self.added = answer_ids.tokens

    def collator(self, prompt):
        inner = super().collator(prompt)

        def collate(samples, answers=False):
            fields = inner(samples)
            if answers:
                written = [prompt.answer_ids(s.actions, s.action_mask) for s in samples]
                fields.labels = torch.tensor(written)
            return fields

        return collate


@pytest.fixture
def speaking():
    undo = [override("vla.heads", "speaking", SpeakingHead), override("vla.vlms", "speaking", SpeakingVLM)]
    yield {"vlm": {"name": "speaking"}, "head": {"name": "speaking"}}
    for back in undo:
        back()


def test_a_backbone_without_decoder_is_refused(speaking):
    message = _error(head=speaking["head"])
    assert message.startswith(
        "framework.vlm: 'fake' has no decoder, and framework.head 'speaking' speaks through one; choose"
    )


def test_a_head_with_queries_is_built():
    class Asking(FakeHead):
        def request(self, mode):
            return VLMRequest(layers=(2,), queries=torch.nn.Embedding(2, 16))

    undo = override("vla.heads", "asking", Asking)
    build_policy(FrameworkConfig(**{"horizon": 4, **FAKE, "head": {"name": "asking"}}), {"default": SPEC})
    undo()


def test_a_head_learns_from_the_rows_and_keeps_it_in_the_checkpoint(speaking, tmp_path):
    config = FrameworkConfig(horizon=4, transforms=[{"name": "normalize"}], **speaking)
    sample = make_sample(SPEC, 1, valid=3)
    row = (sample.observation.state, sample.actions, sample.action_mask)
    policy = build_policy(config, {"default": SPEC}, rows={"default": lambda: [row, row]})
    assert policy.model.vlm.added == ("<a>", "<b>")
    assert len(policy.model.head.seen) == 2
    expected = policy.pipelines["default"](sample)
    np.testing.assert_array_equal(policy.model.head.seen[0][0], expected.actions)
    np.testing.assert_array_equal(policy.model.head.seen[0][1], sample.action_mask)
    saved = policy.eval().save(tmp_path / "steps_1", step=1)
    seen = policy.model.head.seen
    assert VLAPolicy.from_pretrained(saved).model.head.seen == seen
    given = build_policy(config, {"default": SPEC}, head_assets=saved / "assets" / "head")
    assert given.model.head.seen == seen
    assert build_policy(config, {"default": SPEC}).model.head.seen is None


def test_answers_are_written_for_training_only(speaking):
    policy = build_policy(FrameworkConfig(horizon=4, **speaking), {"default": SPEC})
    samples = [make_sample(SPEC, seed) for seed in range(2)]
    labels = policy.collator(samples).tokens.labels
    assert labels.tolist() == [[int(s.actions.sum() > 0)] * 3 for s in samples]
    assert policy.collator(samples, actions=False).tokens.labels is None
    assert policy.collator(samples).to("cpu").tokens.labels is not None


def test_the_head_learns_what_attention_the_backbone_serves():
    class Serving(FakeVLM):
        def __init__(self, config, n_views):
            super().__init__(config, n_views)
            self.dims = replace(self.dims, kv=KVDims(4, 2, 8, 10_000.0))

    config = FrameworkConfig(horizon=4, **FAKE)
    assert build_policy(config, {"default": SPEC}).model.head.dims.kv is None
    undo = override("vla.vlms", "fake", Serving)
    try:
        assert build_policy(config, {"default": SPEC}).model.head.dims.kv == KVDims(4, 2, 8, 10_000.0)
    finally:
        undo()
