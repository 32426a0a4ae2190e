"""``vla-train import-lerobot`` on what it cannot take over: one line each, and nothing is written."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
IN = "model.action_in_proj.weight"
UP = "model.paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def case(published):
    return published("pi0")


@pytest.fixture
def complaint(case, refused, tmp_path):
    """The line about the directory as it now is."""

    def run():
        line = refused(*case.words(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return line

    return run


@pytest.mark.parametrize("what", ["truncated", "header", "empty", "pickle"])
def test_weights_that_are_no_safetensors(case, complaint, what):
    file = case.directory / "model.safetensors"
    whole = file.read_bytes()
    pickled = pickle.dumps({"run": print})
    content = {"truncated": whole[:-100], "header": whole[:50], "empty": b"", "pickle": pickled}
    file.write_bytes(content[what])
    assert "model.safetensors: cannot be read as weights, it may be truncated" in complaint()


def test_a_pickle_is_not_read(case, complaint):
    (case.directory / "model.safetensors").unlink()
    assert "has no model.safetensors" in complaint()
    torch.save({"x": torch.zeros(1)}, case.directory / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle, which is not read: save it as safetensors" in complaint()


@pytest.mark.parametrize("kind", ["act", "smolvla", "pi0_fast"])
def test_other_policies(case, complaint, kind):
    case.edit("config.json", type=kind)
    assert f"config.json: type '{kind}' cannot be imported" in complaint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "pi05"}, "missing [model.time_mlp_in.weight"),
        ({"max_action_dim": 8}, "'head.action_in_proj.weight' becomes (24, 6), the policy"),
        ({"max_action_dim": 2}, "the robot file has 3 action dims, the network 2"),
        ({"chunk_size": "four"}, "'chunk_size' must be a number, got 'four'"),
        ({"image_resolution": [56, 56]}, "image size 56x56 isn't the vision tower's 28x28"),
        ({"n_obs_steps": 2}, "n_obs_steps is 2"),
        ({"use_peft": True}, "use_peft is true"),
        ({"time_sampling_beta_beta": 2.0}, "time_sampling_beta_beta is 2.0"),
        ({"time_sampling_offset": 0.1}, "must add up to 1"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [2]}}}, "action has 2 dims, the robot"),
        ({"input_features": {"observation.state": {"shape": [2]}}}, "input_features has no camera"),
        ({"input_features": {"observation.images.a": {"shape": [1, 8, 8]}}}, "no picture of three channels"),
        ({"input_features": []}, "'input_features' must be a mapping"),
        ({"output_features": {"action": {"shape": "3"}}}, "output_features.action.shape must be 1 whole"),
        ({"image_resolution": [28]}, "image_resolution must be 2 whole number(s) above 0, got [28]"),
        ({"normalization_mapping": "none"}, "'normalization_mapping' must be a mapping, got 'none'"),
        ({"action_feature_names": "x"}, "'action_feature_names' must be a list of words, got 'x'"),
        ({"use_relative_actions": True}, "action_feature_names does not say which dims these are"),
        ({"type": None}, "config.json: is neither lerobot's"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_taken_over(case, complaint, changes, message):
    case.edit("config.json", **changes)
    assert message in complaint()


def test_files_that_are_no_config(case, complaint):
    file = case.directory / "config.json"
    for content, message in (("{", "not valid JSON"), ("[]", "must hold a mapping, not a list")):
        file.write_text(content)
        assert f"config.json: {message}" in complaint()
    file.unlink()
    assert "has no config.json" in complaint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(UP), "missing [head.expert.layers.1.mlp.up_proj.weight]"),
        (lambda s: s.update({"model.extra.weight": torch.zeros(2)}), "unexplained [model.extra.weight]"),
        (lambda s: s.update({UP: torch.zeros(41, 24)}), "up_proj.weight' becomes (41, 24), the policy"),
        (lambda s: s.pop(IN), "has no 'model.action_in_proj.weight', so it holds no pi0"),
        (lambda s: s.update({"normalize_inputs.x.mean": torch.zeros(2)}), "is of lerobot before 0.4"),
        (lambda s: s.pop("model.paligemma_with_expert.paligemma.lm_head.weight"), "missing [model.paligemma"),
        (
            lambda s: s.update({"model.paligemma_with_expert.paligemma.lm_head.weight": torch.zeros(9, 32)}),
            "has 9 rows, the tokenizer of --base_vlm 1539 words",
        ),
    ],
)
def test_weights_that_are_not_explained(case, complaint, change, message):
    state = case.weights()
    change(state)
    case.save(state)
    assert message in complaint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": [{"name": "m", "dim": 2, "unit": "m", "representation": "delta"}]}, "groups have 2"),
        ({"state": []}, "the robot file's state groups have 0"),
        ({"cameras": [{"name": "frnt", "height": 4, "width": 4}]}, "'frnt' (did you mean 'front'?)"),
        ({"cameras": [{"name": "front", "height": 4, "width": 4}] * 2}, "'front' is that of cameras.0.name"),
        ({"embodyment": "x"}, "unknown key 'embodyment' (did you mean 'embodiment'?)"),
        ({"action": []}, "'action' must list at least one entry"),
    ],
)  # fmt: skip
def test_a_robot_file_that_does_not_fit(case, complaint, changes, message):
    case.write_robot(**changes)
    assert message in complaint()


def test_processors_that_do_something_else(case, complaint):
    steps = json.loads((case.directory / PRE).read_text())["steps"]
    case.edit(PRE, steps=[*steps, {"registry_name": "my_crop", "config": {}}])
    assert "step 'my_crop' is unknown, so what the policy saw is unknown" in complaint()
    case.edit(PRE, steps="none")
    assert "'steps' must be a list" in complaint()
    case.edit(PRE, steps=steps)
    case.step(PRE, "normalizer_processor", norm_map={"STATE": "LOG"})
    case.step(POST, "unnormalizer_processor", norm_map={})
    assert "normalises the state by 'LOG', which is unknown (known: MEAN_STD" in complaint()
    case.step(PRE, "normalizer_processor", norm_map={"STATE": "MEAN_STD"})
    case.step(PRE, "relative_actions_processor", enabled=True)
    assert "must be enabled as relative_actions_processor is" in complaint()
    case.edit(PRE, steps=[{**s, "state_file": "../x.safetensors"} for s in steps if "state_file" in s])
    assert "state_file '../x.safetensors' must be a safetensors file beside it" in complaint()
    case.edit(PRE, steps=[{**s, "state_file": "x.safetensors"} for s in steps if "state_file" in s])
    assert "state_file 'x.safetensors' is not there" in complaint()


def test_statistics_that_are_damaged_or_disagree(case, complaint):
    (file,) = case.directory.glob("policy_postprocessor_*.safetensors")
    from safetensors.torch import load_file, save_file

    stats = load_file(file)
    save_file({**stats, "action.mean": stats["action.mean"] + 1}, file)
    assert "its statistics of the action are not those of policy_preprocessor.json" in complaint()
    save_file({**stats, "action.mean": torch.full((3,), float("nan"))}, file)
    assert "'action.mean' must be a list of finite numbers" in complaint()
    file.write_bytes(file.read_bytes()[:-20])
    assert "it may be truncated" in complaint()


def test_statistics_on_the_command_line(case, refused, tmp_path):
    words = [*case.words(tmp_path / "out"), "--stats", tmp_path / "s.json"]
    assert "s.json: cannot be read (No such file or directory)" in refused(*words)
    for content, message in (
        ({}, "has neither observation.state nor action"),
        ({"norm_stats": []}, "has no 'norm_stats'"),
        ({"action": {"mean": ["a"]}}, "'action.mean' is no list of numbers"),
        ({"observation.state": {"mean": [0.0], "std": [1.0]}}, "have 1 dims, the robot file's state groups"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(content))
        assert message in refused(*words)


def test_numbers_of_the_state_in_the_prompt(case, published, refused, tmp_path):
    words = [*case.words(tmp_path / "out"), "--prompt_state_dims"]
    assert "--prompt_state_dims is for pi05" in refused(*words, 4)
    words = [*published("pi05").words(tmp_path / "out"), "--prompt_state_dims"]
    assert "--prompt_state_dims 1: the state has 2 dims already" in refused(*words, 1)


def test_a_base_vlm_that_is_none(case, refused, tmp_path):
    words = case.words(tmp_path / "out")
    (case.base_vlm / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    assert "is a 'gemma', not a 'paligemma on gemma'" in refused(*words)
    assert "no such directory" in refused(tmp_path / "nothing", *words[1:])
