"""``vla-train import-starvla``: what it asks for, what it refuses, what it writes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from vla_core.errors import UserError
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.importers.common.robot_file import CameraEntry
from vla_train.importers.starvla.backbone import Backbone, processed_size
from vla_train.importers.starvla.robot_file import RobotFile, read_robot
from vla_train.importers.starvla.run_files import find_run
from vla_train.importers.starvla.statistics import convert, normalize_node


@pytest.fixture
def refused(capsys):
    """Runs the command and returns its one line of complaint."""

    def run(*words):
        assert main(["import-starvla", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "Traceback" not in line
        return line

    return run


def _config(golden, **changes):
    file = golden.run / "config.yaml"
    data = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        node = data
        for part in path:
            node = node[part]
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    file.write_text(yaml.safe_dump(data))


def test_the_report_accounts_for_every_tensor(starvla_run, golden_weights, tmp_path, capsys):
    golden = starvla_run("QwenPI")
    assert main(["import-starvla", *golden.words(tmp_path / "out"), "--dit_blocks", "interleaved"]) == 0
    lines = (tmp_path / "out" / "import_report.txt").read_text().splitlines()
    sources = {
        name
        for line in lines
        if line.startswith(("mapped", "dropped"))
        for name in line.split(" ", 1)[1].split(" -> ")[0].split(": ")[0].strip().split(" + ")
    }
    assert sources == set(golden_weights("QwenPI"))
    assert any(line.startswith("dropped action_model.model.proj_out_1.weight: dead") for line in lines)
    shown = capsys.readouterr().out
    assert "attn1.to_q.weight" not in shown
    assert "tensors     123 mapped, 5 dropped, 0 new\n" in shown
    assert f"report      {tmp_path / 'out' / 'import_report.txt'}" in shown
    assert f"checkpoint  {tmp_path / 'out'}" in shown


def test_safetensors_steps_and_the_weights_file_itself(starvla_run, golden_weights, tmp_path):
    golden = starvla_run("QwenGR00T")
    state = {name: value.clone() for name, value in golden_weights("QwenGR00T").items()}
    file = golden.run / "checkpoints" / "steps_30_model.safetensors"
    save_file(state, file)
    assert find_run(golden.run).step == 30
    assert find_run(golden.run, 20).weights.name == "steps_20_pytorch_model.pt"
    assert find_run(file).config == find_run(golden.run / "checkpoints").config
    words = golden.words(tmp_path / "out")
    assert main(["import-starvla", str(file), *words[1:]]) == 0
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["step"] == 30
    (spec,) = meta["embodiments"]
    assert [c["name"] for c in spec["observation"]["cameras"]] == ["front", "wrist"]


def test_an_imported_policy_acts_and_starts_a_run(starvla_run, golden_observations, tmp_path):
    golden = starvla_run("QwenPI_v3")
    assert main(["import-starvla", *golden.words(tmp_path / "out")]) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    first, second = (policy.act(golden_observations(True), [3, 4]) for _ in range(2))
    assert first[0].actions.shape == (4, 3)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, second, strict=True))


def test_what_a_run_does_not_record_is_asked_for(starvla_run, refused, tmp_path, capsys):
    golden = starvla_run("QwenPI")
    out = tmp_path / "out"
    words = golden.words(out)
    assert "--robot is missing" in refused(golden.run, out)
    assert "--dit_blocks cross" in refused(*words)
    assert "pass --base_vlm DIR" in refused(*words[:4])
    _config(golden, framework__action_model__action_horizon=None)
    _config(golden, framework__action_model__future_action_window_size=None)
    assert "pass --horizon T" in refused(*words, "--dit_blocks", "cross")
    stats = json.loads((golden.run / "dataset_statistics.json").read_text())
    (golden.run / "dataset_statistics.json").write_text(json.dumps({"a": stats["tiny"], "b": stats["tiny"]}))
    assert "statistics of a, b; choose with --unnorm_key" in refused(
        *words, "--horizon", 4, "--dit_blocks", "cross"
    )
    assert not out.exists()
    assert main(["import-starvla", str(golden.run), "--print_robot", "--unnorm_key", "a"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert [group["name"] for group in yaml.safe_load(file.read_text())["action"]] == [
        "dim_0",
        "dim_1",
        "dim_2",
    ]
    assert "printed.yaml" in refused(golden.run, out, "--robot", file)
    with pytest.raises(UserError, match=r"printed.yaml:\d+: 'control_hz' must be set"):
        read_robot(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": [{"name": "m", "dim": 2, "normalize": "q99", "unit": "m", "representation": "delta"}]},
         "the head has 3 action dims, the robot file has 2"),
        ({"state": []}, "the head reads 2 state dims, the robot file has 0"),
        ({"embodyment": "x"}, "unknown key 'embodyment' (did you mean 'embodiment'?)"),
        ({"action": [{"name": "m", "dim": 3, "normalize": "q9", "unit": "m", "representation": "delta"}]},
         "'q99'"),
    ],
)  # fmt: skip
def test_a_robot_file_that_does_not_fit(starvla_run, robot_file, refused, tmp_path, change, message):
    golden = starvla_run("QwenGR00T")
    words = golden.words(tmp_path / "out")
    words[3] = str(robot_file(**change))
    assert message in refused(*words)


@pytest.mark.parametrize("what", ["missing", "unexplained", "shape"])
def test_weights_that_are_not_explained(starvla_run, golden_weights, refused, tmp_path, what):
    state = golden_weights("QwenGR00T")
    name = "action_model.model.transformer_blocks.1.attn1.to_q.weight"
    if what == "missing":
        del state[name]
    elif what == "unexplained":
        state["action_model.vlln.weight"] = torch.zeros(3)
    else:
        vocabulary = "qwen_vl_interface.model.model.language_model.embed_tokens.weight"
        state[vocabulary] = state[vocabulary][:-1]
    golden = starvla_run("QwenGR00T", state=state)
    line = refused(*golden.words(tmp_path / "out"))
    expected = {
        "missing": f"missing [{name}]",
        "unexplained": "unexplained [action_model.vlln.weight]",
        "shape": "'vlm.model.language_model.embed_tokens.weight' becomes (1536, 32)",
    }
    assert expected[what] in line


@pytest.mark.parametrize("what", ["truncated", "pickle", "object", "list"])
def test_files_that_are_no_state_dict(starvla_run, refused, tmp_path, what):
    golden = starvla_run("QwenGR00T")
    file = golden.run / "checkpoints" / "steps_20_pytorch_model.pt"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif what == "pickle":
        file.write_bytes(pickle.dumps({"run": print}, 2))
    elif what == "object":
        torch.save(torch.nn.Linear(2, 2), file)
    else:
        torch.save([torch.zeros(2)], file)
    assert "steps_20_pytorch_model.pt" in refused(*golden.words(tmp_path / "out"))


def test_runs_that_are_none(starvla_run, refused, tmp_path):
    golden = starvla_run("QwenGR00T")
    out = tmp_path / "out"
    words = golden.words(out)
    assert "no such StarVLA run" in refused(tmp_path / "nothing", *words[1:])
    assert "no weights of step 7 (known: 20)" in refused(*words, "--step", 7)
    _config(golden, framework__name="QwenGROOT")
    assert "cannot be imported (did you mean 'QwenGR00T'?)" in refused(*words)
    _config(golden, framework__name="QwenGR00T", datasets__vla_data__CoT_prompt="Go.")
    assert "must have {instruction} once" in refused(*words)
    (golden.run / "dataset_statistics.json").unlink()
    assert "has no normalisation statistics" in refused(*words)
    out.mkdir()
    (golden.run / "dataset_statistics.json").write_text("{}")
    assert "not StarVLA's statistics" in refused(*words)


def test_fast_asks_for_its_action_tokenizer(starvla_run, refused, tmp_path):
    golden = starvla_run("QwenFast")
    words = golden.words(tmp_path / "out")
    assert "--fast is missing" in refused(*words)
    assert "nothing" in refused(*words, "--fast", tmp_path / "nothing", "--image_size", "56x56")
    _config(golden, framework__action_model__action_dim=None)
    assert "QwenFast's weights do not tell it" in refused(*words)


def test_statistics_give_starvlas_numbers(tmp_path):
    """q99 with an empty range, scale, and the binary gripper, against its formulas."""
    entry = {"unit": "1", "representation": "delta"}
    modes = ("q99", "q99", "scale", "binary", "min_max")
    robot = RobotFile(
        embodiment="x",
        control_hz=1.0,
        cameras=[CameraEntry("c", 2, 2)],
        action=[_entry(name=f"g{i}", normalize=mode, **entry) for i, mode in enumerate(modes)],
    )
    node = {
        "mean": [0.0] * 5, "std": [1.0] * 5, "mask": [True, True, True, False, True],
        "min": [-1, -4.0, -3.0, -0.2, 1.0], "max": [2.0, 4.0, 2.0, 0.9, 3.0],
        "q01": [-0.5, 0.25, -1, 0, 1.5], "q99": [1.5, 0.25, 1, 0.8, 2.5],
    }  # fmt: skip
    stats = convert({"x": {"action": node}}, "x", robot, False, tmp_path)
    from vla_core import Pipeline
    from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec

    spec = RobotSpec(
        ObservationSpec((CameraSpec("c", 2, 2),)),
        ActionSpec(tuple(GroupSpec(f"g{i}", 1, "1") for i in range(5)), 1, 1.0),
        stats,
    )
    pipeline = Pipeline([normalize_node(robot, False)], spec)
    y = np.array([[0.3, 0.7, 0.5, 0.6, -0.5]], np.float32)
    np.testing.assert_allclose(pipeline.inverse(y, None), [[0.8, 0.25, 1.5, 1.0, 1.5]], atol=1e-6)
    assert pipeline.inverse(np.full((1, 5), 0.4, np.float32), None)[0, 3] == 0.0
    forward, _ = pipeline.targets(
        None, np.array([[9.0, 0.25, 1.5, 0.51, 3.0]], np.float32), np.ones((1, 5), bool)
    )
    np.testing.assert_allclose(forward, [[2.2, 0.0, 0.5, 1.0, 1.0]], atol=1e-6)


def _entry(**values):
    from vla_train.importers.starvla.robot_file import GroupEntry

    return GroupEntry(**values)


@pytest.mark.parametrize(
    ("limits", "size", "expected"),
    [((3136, 10**7), (224, 224), (224, 224)), ((65536, 10**7), (224, 224), (256, 256)),
     ((0, 50000), (256, 320), (192, 224)), ((0, 10**7), (230, 250), (224, 256))],
)  # fmt: skip
def test_image_sizes_follow_the_processor(limits, size, expected):
    """As transformers does it; Qwen3-VL's processor enlarges small images: 224 becomes 256."""
    pytest.importorskip("torchvision", reason="transformers' image processors import it")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    backbone = Backbone("qwen3_vl", "x", 32, *limits)
    assert processed_size(backbone, *size) == expected
    assert smart_resize(*size, 32, limits[0], limits[1]) == expected


def test_the_checkpoint_loader_names_the_command(starvla_run):
    golden = starvla_run("QwenGR00T")
    for path in (golden.run, golden.run / "checkpoints", next((golden.run / "checkpoints").iterdir())):
        with pytest.raises(UserError, match=f"vla-train import-starvla {path} OUT"):
            VLAPolicy.from_pretrained(path)


def _stats(golden, vector, **changes):
    file = golden.run / "dataset_statistics.json"
    data = json.loads(file.read_text())
    data["tiny"][vector] |= changes
    file.write_text(json.dumps(data))


def _groups(*modes):
    common = {"dim": 1, "unit": "1", "representation": "delta"}
    return [{"name": f"g{i}", "normalize": mode, **common} for i, mode in enumerate(modes)]


def test_a_dim_outside_the_normalisation_may_stay_raw(starvla_run, robot_file, refused, tmp_path, capsys):
    """A continuous gripper that StarVLA leaves alone: what the head says is the answer."""
    golden = starvla_run("QwenGR00T")
    _stats(golden, "action", mask=[True, True, False], min=[-2, -2, 0.25], max=[2, 2, 0.75])
    words = golden.words(tmp_path / "out")
    assert main(["import-starvla", str(golden.run), "--print_robot"]) == 0
    assert "dim_2 out: binary (0 or 1), or none" in capsys.readouterr().out
    words[3] = str(robot_file(action=_groups("min_max", "min_max", "q99")))
    assert "mask: the run leaves dim 2 out of its normalisation" in refused(*words)
    words[3] = str(robot_file(action=_groups("min_max", "min_max", "none")))
    assert main(["import-starvla", *words]) == 0
    pipeline = VLAPolicy.from_pretrained(tmp_path / "out").pipelines["tiny"]
    answer = pipeline.inverse(np.array([[0.5, 3.0, 0.6]], np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(answer, [[1.0, 6.0, 0.6]], atol=1e-6)


def test_state_and_action_of_one_name_have_modes_of_their_own(starvla_run, robot_file, tmp_path):
    golden = starvla_run("QwenGR00T")
    words = golden.words(tmp_path / "out")
    state = [{"name": "g2", "dim": 2, "normalize": "q99", "unit": "1", "representation": "absolute"}]
    words[3] = str(robot_file(action=_groups("q99", "q99", "binary"), state=state))
    assert main(["import-starvla", *words]) == 0
    steps = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["framework"]["transforms"]
    assert steps[-1]["groups"] == {
        "action.g0": "q99", "action.g1": "q99", "action.g2": "binary", "state.g2": "q99"
    }  # fmt: skip


@pytest.mark.parametrize(("vector", "head"), [("action", 3), ("state", 2)])
def test_statistics_of_another_width_than_the_head(starvla_run, refused, tmp_path, vector, head):
    golden = starvla_run("QwenGR00T")
    fields = ("mean", "std", "min", "max", "q01", "q99")
    _stats(golden, vector, **{name: [0.0] * 8 for name in fields})
    line = refused(*golden.words(tmp_path / "out"))
    assert f"the statistics of 'tiny' have 8 {vector} dims, the head of" in line
    assert f"steps_20_pytorch_model.pt has {head}" in line


def test_a_base_vlm_is_looked_for_near_the_run(starvla_run, refused, tmp_path, capsys, monkeypatch):
    golden = starvla_run("QwenGR00T")
    monkeypatch.chdir(tmp_path / "base")
    words = [str(golden.run), str(tmp_path / "out"), "--robot", str(golden.robot)]
    named = "./playground/Pretrained_models/Qwen2.5-VL-tiny"
    _config(golden, framework__qwenvl__base_vlm=named)
    line = refused(*words)
    assert f"config.yaml: framework.qwenvl.base_vlm '{named}': no such directory (tried " in line
    assert str(tmp_path / "base" / "playground") in line
    assert "pass --base_vlm DIR" in line
    near = tmp_path / "playground" / "Pretrained_models" / "Qwen2.5-VL-tiny"
    near.parent.mkdir(parents=True)
    golden.base_vlm.rename(near)
    assert main(["import-starvla", *words]) == 0
    assert f"note        base VLM: {near}" in capsys.readouterr().out


def test_a_wrong_base_vlm_is_called_so(starvla_run, refused, tmp_path):
    golden = starvla_run("QwenGR00T")
    other = starvla_run("qwen3/QwenGR00T", tmp_path / "other")
    words = golden.words(tmp_path / "out")
    words[5] = str(other.base_vlm)
    line = refused(*words)
    assert "trained from a qwen2_5_vl of hidden size 32 with 3 layers, and --base_vlm" in line
    assert "is a qwen3_vl of hidden size 32 with 4 layers; pass --base_vlm DIR" in line
    file = golden.base_vlm / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["hidden_size"] = 64
    file.write_text(json.dumps(config))
    assert "is a qwen2_5_vl of hidden size 64 with 3 layers; pass" in refused(*golden.words(tmp_path / "out"))


def test_a_state_that_no_action_attends_to_is_said(starvla_run, tmp_path, capsys):
    note = "state: read, but no action attends to it"
    words = starvla_run("QwenPI").words(tmp_path / "out")
    assert main(["import-starvla", *words, "--dit_blocks", "interleaved"]) == 0
    assert note not in capsys.readouterr().out
    words[1] = str(tmp_path / "cross")
    assert main(["import-starvla", *words, "--dit_blocks", "cross"]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("key", ["cameras", "action"])
def test_two_of_one_name_are_refused_with_both_places(starvla_run, refused, tmp_path, key):
    golden = starvla_run("QwenGR00T")
    words = golden.words(tmp_path / "out")
    file = tmp_path / "twice.yaml"
    groups = "".join(
        f"- {{name: {name}, normalize: q99, unit: m, representation: delta}}\n"
        for name in ("x", "y", "x" if key == "action" else "z")
    )
    cameras = "- {name: front, height: 8, width: 8}\n" * (2 if key == "cameras" else 1)
    file.write_text(f"embodiment: e\ncontrol_hz: 5\ncameras:\n{cameras}action:\n{groups}")
    words[3] = str(file)
    line = refused(*words)
    if key == "cameras":
        assert f"{file}:5: cameras.1.name 'front' is that of cameras.0.name already ({file}:4)" in line
    else:
        assert f"{file}:8: action.2.name 'x' is that of action.0.name already ({file}:6)" in line
