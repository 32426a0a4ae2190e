from __future__ import annotations

import json
import os
import pickle
import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from vla_core import UserError, VLAPolicy, checkpoint, files
from vla_core.assemble import build_policy
from vla_core.checkpoint import read_checkpoint, weights_file
from vla_core.framework import FrameworkConfig
from vla_core.testing import make_observation, make_sample, make_spec, tiny_policy
from vla_core.weights import assign_weights, load_weights, save_weights

SPEC = make_spec()
pytestmark = pytest.mark.usefixtures("fakes")


def _saved(tmp_path: Path, weights="safetensors", seed=0) -> Path:
    return tiny_policy(SPEC, seed).save(tmp_path / "checkpoints" / "steps_3", step=3, weights=weights)


def _actions(policy):
    return [c.actions for c in policy.act([make_observation(SPEC, i) for i in range(2)], [0, 1])]


def _load_error(path: Path) -> str:
    with pytest.raises(UserError) as error:
        VLAPolicy.from_pretrained(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("weights", ["safetensors", "pt"])
def test_round_trip_is_bit_equal(tmp_path, weights):
    path = _saved(tmp_path, weights)
    name = {"safetensors": "model.safetensors", "pt": "steps_3_pytorch_model.pt"}[weights]
    files = {"config.yaml", "norm_stats.json", "meta.json", "assets", name}
    assert {p.name for p in path.iterdir()} == files
    assert [p.name for p in path.parent.iterdir()] == ["steps_3"]
    original = tiny_policy(SPEC)
    for given in (path, str(path), path / name):
        policy = VLAPolicy.from_pretrained(given)
        assert not policy.model.training
        assert policy.specs == original.specs
        assert policy.config == original.config
        assert policy.framework == "Fake"
        for a, b in zip(_actions(policy), _actions(original), strict=True):
            np.testing.assert_array_equal(a, b)
    assert weights_file(path) == path / name


def test_what_is_recorded(tmp_path):
    path = tiny_policy(SPEC).save(tmp_path / "c", step=12, config={"seed": 5, "framework": "stale"})
    config = yaml.safe_load((path / "config.yaml").read_text())
    assert config["seed"] == 5
    assert config["framework"]["vlm"] == {"name": "fake", "hidden_size": 16, "n_layers": 2}
    # The steps are written with all their settings: a later change of a default cannot alter them.
    assert config["framework"]["transforms"][0]["action"] == "q99"
    meta = json.loads((path / "meta.json").read_text())
    assert (meta["format"], meta["step"]) == (1, 12)
    assert "vla-core" in meta["packages"]
    assert (meta["data_digest"], read_checkpoint(path).data_digest) == ("", "")
    tiny_policy(SPEC).save(tmp_path / "told", step=12, data_digest="abc")
    assert read_checkpoint(tmp_path / "told").data_digest == "abc"
    # Written before checkpoints said it.
    (path / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "data_digest"}))
    assert read_checkpoint(path).data_digest == ""


def test_statistics_after_relative_actions_travel(tmp_path):
    nodes = [
        {"name": "relative_actions", "groups": {"position": "position"}},
        {"name": "convert_rotation", "groups": ["rotation"]},
        {"name": "normalize"},
    ]
    config = FrameworkConfig(horizon=4, vlm={"name": "fake"}, head={"name": "fake"}, transforms=nodes)
    samples = [make_sample(SPEC, i) for i in range(9)]
    rows = {"default": lambda: ((s.observation.state, s.actions, s.action_mask) for s in samples)}
    policy = build_policy(config, {"default": SPEC}, rows=rows).eval()
    loaded = VLAPolicy.from_pretrained(policy.save(tmp_path / "c", step=1))
    assert loaded.pipelines["default"].statistics == policy.pipelines["default"].statistics
    assert loaded.specs["default"] == SPEC
    for a, b in zip(_actions(loaded), _actions(policy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dtype(tmp_path):
    policy = VLAPolicy.from_pretrained(_saved(tmp_path), dtype=torch.bfloat16)
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    assert np.isfinite(_actions(policy)[0]).all()


def test_overwriting(tmp_path):
    first = _actions(VLAPolicy.from_pretrained(_saved(tmp_path, seed=0)))
    path = _saved(tmp_path, "pt", seed=1)
    second = _actions(VLAPolicy.from_pretrained(path))
    assert not np.array_equal(first[0], second[0])
    assert not (path / "model.safetensors").exists()
    assert [p.name for p in path.parent.iterdir()] == ["steps_3"]


class Crash(RuntimeError):
    pass


def _crash(*_):
    raise Crash


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_while_writing_leaves_nothing_half(tmp_path, monkeypatch, existing):
    final = tmp_path / "checkpoints" / "steps_3"
    before = _actions(VLAPolicy.from_pretrained(_saved(tmp_path))) if existing else None
    policy = tiny_policy(SPEC, seed=1)
    monkeypatch.setattr(policy.model.vlm, "save_assets", _crash)
    with pytest.raises(Crash):
        policy.save(final, step=3)
    assert [p.name for p in final.parent.iterdir()] == (["steps_3"] if existing else [])
    if existing:
        np.testing.assert_array_equal(_actions(VLAPolicy.from_pretrained(final))[0], before[0])


def test_a_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    final = _saved(tmp_path)
    before = _actions(VLAPolicy.from_pretrained(final))
    rename = Path.rename

    def failing(self, target):
        if ".tmp-" in self.name:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)  # as where names cannot be swapped
    with pytest.raises(OSError, match="disk full"):
        tiny_policy(SPEC, seed=1).save(final, step=3)
    assert [p.name for p in final.parent.iterdir()] == ["steps_3"]
    np.testing.assert_array_equal(_actions(VLAPolicy.from_pretrained(final))[0], before[0])


def test_a_killed_writer_leaves_no_final_directory(tmp_path, monkeypatch):
    final, policy = tmp_path / "steps_3", tiny_policy(SPEC)
    with monkeypatch.context() as patch:
        # A killed process tidies nothing up.
        patch.setattr(policy.model.vlm, "save_assets", _crash)
        patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Crash):
            policy.save(final, step=3)
    assert len(list(tmp_path.iterdir())) == 1
    assert _load_error(final) == f"{final}: no such checkpoint"
    # The next attempt of the same process is not in its way.
    policy.save(final, step=3)
    assert [p.name for p in tmp_path.iterdir()] == ["steps_3"]


@pytest.mark.parametrize("weights", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_weights(tmp_path, weights, keep):
    file = weights_file(_saved(tmp_path, weights))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert "truncated" in _load_error(file.parent)


@pytest.mark.parametrize("name", ["meta.json", "norm_stats.json", "config.yaml"])
@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"format": 1}', "a: [", "framework: 3"])
def test_damaged_text_files(tmp_path, name, text):
    path = _saved(tmp_path)
    (path / name).write_text(text)
    assert str(path) in _load_error(path) or "framework" in _load_error(path)


@pytest.mark.parametrize("name", ["meta.json", "norm_stats.json", "config.yaml", "model.safetensors"])
def test_missing_files(tmp_path, name):
    path = _saved(tmp_path)
    (path / name).unlink()
    assert name in _load_error(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_MARK"],)


@pytest.mark.parametrize(
    "content",
    [
        lambda f: torch.save({"w": Evil()}, f),
        lambda f: f.write_bytes(pickle.dumps(Evil(), 2)),
        lambda f: torch.save([torch.zeros(2)], f),
        lambda f: torch.save({"w": 3}, f),
        lambda f: torch.save(nn.Linear(2, 2), f),
        lambda f: f.write_bytes(pickle.dumps({"w": [1, 2]}, 2)),
        lambda f: f.write_text("hello"),
    ],
)
def test_only_a_state_dict_is_accepted_and_nothing_is_executed(tmp_path, monkeypatch, content):
    mark = tmp_path / "executed"
    monkeypatch.setenv("EVIL_MARK", str(mark))
    path = _saved(tmp_path, "pt")
    content(weights_file(path))
    message = _load_error(path)
    assert "state dict" in message or "cannot be read as weights" in message
    assert not mark.exists()


def test_weights_that_do_not_fit(tmp_path):
    path = _saved(tmp_path, "pt")
    file = weights_file(path)
    state = load_weights(file)
    key = "head.out.weight"
    for change, message in [
        ({k: v for k, v in state.items() if k != key}, f"missing [{key}], unexpected []"),
        ({**state, "extra.weight": torch.zeros(2)}, "missing [], unexpected [extra.weight]"),
        ({**state, key: state[key][:5]}, f"'{key}' has shape (5, 23), the model has (28, 23)"),
    ]:
        torch.save(change, file)
        assert f"{file}: " in _load_error(path)
        assert message in _load_error(path)


def test_a_newer_format(tmp_path):
    path = _saved(tmp_path)
    meta = json.loads((path / "meta.json").read_text())
    meta["format"], meta["packages"]["vla-core"] = 2, "9.9"
    (path / "meta.json").write_text(json.dumps(meta))
    assert "checkpoint format 2, this vla-core reads 1; it was written with vla-core 9.9" in _load_error(path)


def test_a_run_instead_of_a_checkpoint(tmp_path):
    for step in (3, 20, 100):
        tiny_policy(SPEC).save(tmp_path / "checkpoints" / f"steps_{step}", step=step)
    (tmp_path / "checkpoints" / "steps_final").mkdir()
    newest = tmp_path / "checkpoints" / "steps_100"
    for given in (tmp_path, tmp_path / "checkpoints"):
        assert _load_error(given) == f"{given} is a run, not a checkpoint; its newest checkpoint is {newest}"
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint of this project, it has no config.yaml" in _load_error(tmp_path / "empty")
    assert "no such checkpoint" in _load_error(tmp_path / "none")


def test_a_part_that_is_not_installed(tmp_path):
    path = _saved(tmp_path)
    text = (path / "config.yaml").read_text().replace("name: fake", "name: fakee")
    (path / "config.yaml").write_text(text)
    assert "framework.vlm.name: no 'fakee' in vla.vlms (did you mean 'fake'?)" in _load_error(path)


@pytest.mark.parametrize("weights", ["safetensors", "pt"])
def test_tied_parameters_are_written_once(tmp_path, weights):
    def tied(seed):
        policy = tiny_policy(SPEC, seed)
        policy.model.vlm.tied = policy.model.vlm.text
        return policy

    first, second = tied(0), tied(1)
    file = weights_file(first.save(tmp_path / "c", step=1, weights=weights))
    state = load_weights(file)
    assert ("vlm.text.weight" in state, "vlm.tied.weight" in state) == (True, False)
    assign_weights(second.model, state, file)
    assert second.model.vlm.tied.weight is second.model.vlm.text.weight
    np.testing.assert_array_equal(_actions(second)[0], _actions(first)[0])
    untied = tiny_policy(SPEC)
    untied.model.vlm.tied = nn.Embedding(256, 16)
    with pytest.raises(UserError, match=r"missing \[vlm.tied.weight\]"):
        assign_weights(untied.model, state, file)


def test_neither_network_nor_home_directory(tmp_path, monkeypatch):
    path, home = _saved(tmp_path), tmp_path / "no_home"

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(home))
    assert _actions(VLAPolicy.from_pretrained(path))[0].shape == (4, 7)
    assert not home.exists()


def test_loading_replaces_nothing_in_a_spec(tmp_path):
    loaded = VLAPolicy.from_pretrained(_saved(tmp_path)).specs["default"]
    assert replace(loaded, statistics=SPEC.statistics) == loaded


def test_a_cache_for_a_policy_without_geometry(tmp_path):
    with pytest.raises(UserError, match="cache_mib: given, but this policy has no geometry encoder"):
        VLAPolicy.from_pretrained(_saved(tmp_path), cache_mib=8)


def _edit(path: Path, name: str, change) -> None:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def test_files_that_the_weights_were_not_written_with_are_said(tmp_path, caplog):
    path = _saved(tmp_path)
    VLAPolicy.from_pretrained(path)
    assert caplog.messages == []
    # The same content in another layout is the same.
    _edit(path, "norm_stats.json", lambda stats: None)
    assert checkpoint.changes(path) == []
    _edit(
        path, "norm_stats.json", lambda stats: stats["default"]["model"]["action"]["q99"].__setitem__(0, 9.0)
    )
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["framework"]["transforms"][0]["action"] = "min_max"
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    VLAPolicy.from_pretrained(path)
    assert caplog.messages == [
        f"{path}: config.yaml has another framework than model.safetensors was written with; copied "
        "together, or edited?",
        f"{path}: norm_stats.json has other statistics than model.safetensors was written with; copied "
        "together, or edited?",
    ]


def test_weights_of_another_policy_of_equal_shapes_are_said(tmp_path):
    groups = tuple(replace(group, unit="deg") for group in SPEC.action.groups)
    other = replace(SPEC, action=replace(SPEC.action, groups=groups))
    theirs = tiny_policy(other).save(tmp_path / "theirs", step=1)
    path, later = _saved(tmp_path), tiny_policy(SPEC, 1).save(tmp_path / "later", step=9)
    (path / "model.safetensors").write_bytes((later / "model.safetensors").read_bytes())
    assert checkpoint.changes(path) == []  # other weights of the same policy
    (path / "model.safetensors").write_bytes((theirs / "model.safetensors").read_bytes())
    (said,) = checkpoint.changes(path / "model.safetensors")
    assert "meta.json has other robots than model.safetensors was written with" in said


def test_weights_that_say_nothing_are_believed(tmp_path):
    path = _saved(tmp_path)
    save_weights(load_weights(path / "model.safetensors"), path / "model.safetensors")
    _edit(
        path, "norm_stats.json", lambda stats: stats["default"]["model"]["action"]["q99"].__setitem__(0, 9.0)
    )
    assert checkpoint.changes(path) == []
    assert checkpoint.changes(_saved(tmp_path, "pt")) == []


def test_two_weights_files_in_one_directory(tmp_path):
    path = _saved(tmp_path, "pt")
    (path / "steps_20_pytorch_model.pt").write_bytes((path / "steps_3_pytorch_model.pt").read_bytes())
    assert "several weights files (steps_20_pytorch_model.pt, steps_3_pytorch_model.pt)" in _load_error(path)
    VLAPolicy.from_pretrained(path / "steps_20_pytorch_model.pt")


def test_percentiles_of_a_constant_dim_may_be_rounded(tmp_path):
    path = _saved(tmp_path)

    def edit(stats):
        model = stats["default"]["model"]["action"]
        for key in ("min", "q01", "q99", "max"):
            model[key][1] = 0.3
        model["q01"][1] = 0.3 + 1e-8

    _edit(path, "norm_stats.json", edit)
    VLAPolicy.from_pretrained(path)


@pytest.mark.parametrize(
    ("vector", "key", "value", "said"),
    [
        ("action", "q99", -5.0, r"statistics of 'action' have q01 -?\d.* and q99 -5 for dim 1 \(of '"),
        ("action", "q01", None, "q01 nan and q99"),
        ("state", "q01", float("inf"), "statistics of 'state' have q01 inf"),
    ],
)
def test_statistics_that_no_data_has(tmp_path, vector, key, value, said):
    path = _saved(tmp_path)
    _edit(path, "norm_stats.json", lambda stats: stats["default"]["model"][vector][key].__setitem__(1, value))
    assert re.search(said, _load_error(path))
