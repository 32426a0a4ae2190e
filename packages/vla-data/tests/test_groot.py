"""Modality configs of GR00T N1.6: what they become, that it computes the same, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from vla_core import rotations
from vla_core.errors import UserError
from vla_core.transforms import Pipeline
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.cli import main
from vla_data.convert import convert
from vla_data.robot.groot import translate

FRAMES = 12
RNG = np.random.default_rng(0)
STATE = RNG.standard_normal((FRAMES, 16)).astype(np.float32)
ACTION = RNG.standard_normal((FRAMES, 16)).astype(np.float32)
CONFIG = """
from gr00t.configs.data.embodiment_configs import register_modality_config
from gr00t.data.types import ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig

HORIZON = 4
my_config = {
    "video": ModalityConfig(delta_indices=[-2, 0], modality_keys=["wrist", "front"]),
    "state": ModalityConfig(
        delta_indices=[-2, 0], modality_keys=["eef", "joints", "grip"], mean_std_embedding_keys=["joints"]
    ),
    "action": ModalityConfig(
        delta_indices=list(range(HORIZON)),
        modality_keys=["eef", "arm", "grip"],
        action_configs=[
            ActionConfig(
                rep=ActionRepresentation.RELATIVE, type=ActionType.EEF, format=ActionFormat.XYZ_ROT6D
            ),
            ActionConfig(
                ActionRepresentation.RELATIVE, ActionType.NON_EEF, ActionFormat.DEFAULT, state_key="joints"
            ),
            ActionConfig(ActionRepresentation.ABSOLUTE, ActionType.NON_EEF, ActionFormat.DEFAULT),
        ],
    ),
    "language": ModalityConfig(delta_indices=[0], modality_keys=["sub_task"]),
}
register_modality_config(my_config)
"""


@pytest.fixture(scope="module")
def data(write_lerobot, tmp_path_factory):
    root = write_lerobot(
        tmp_path_factory.mktemp("groot") / "data",
        version="v2.1",
        lengths=(7, 5),
        size=32,
        cameras=("observation.images.front", "observation.images.hand"),
        columns={"observation.state": STATE, "action": ACTION},
    )
    slices = {"eef": (0, 9), "joints": (9, 15), "grip": (15, 16)}
    state = {name: {"start": a, "end": b} for name, (a, b) in slices.items()}
    action = {("arm" if name == "joints" else name): part for name, part in state.items()}
    video = {"front": {}, "wrist": {"original_key": "observation.images.hand"}}
    modality = {"state": state, "action": action, "video": video, "annotation": {}}
    (root / "meta/modality.json").write_text(json.dumps(modality))
    file = root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    parts = [[(0, 3, "reach"), (3, 7, "pull")], [(0, 5, "push")]]
    for line, listed in zip(lines, parts, strict=True):
        line["sub_tasks"] = [{"start": a, "end": b, "text": text} for a, b, text in listed]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return root


@pytest.fixture
def written(tmp_path):
    def write(text: str = CONFIG, name: str = "config.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def _pose(rows: np.ndarray) -> np.ndarray:
    """GR00T's nine numbers as 4 x 4 matrices: position, then the first two rows."""
    first = rows[:, 3:6] / np.linalg.norm(rows[:, 3:6], axis=1, keepdims=True)
    second = rows[:, 6:9] - (first * rows[:, 6:9]).sum(1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    out = np.tile(np.eye(4), (len(rows), 1, 1))
    out[:, :3, :3], out[:, :3, 3] = np.stack([first, second, np.cross(first, second)], 1), rows[:, :3]
    return out


def test_the_translation_computes_what_groot_does(data, written, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["groot", str(data), str(written()), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.count("differs") == 2
    train = yaml.safe_load((out / "train.yaml").read_text())
    (entry,) = train["datasets"]["train"]
    assert entry["observation_delta_indices"] == [-2, 0]
    horizon, nodes = train["framework"]["horizon"], train["framework"]["transforms"]
    entry["observation_delta_indices"] = tuple(entry["observation_delta_indices"])
    source = LeRobotSource(LeRobotConfig(**{k: v for k, v in entry.items() if k != "name"}), horizon)
    cameras = [camera.name for camera in source.spec.observation.cameras]
    assert cameras == ["wrist@-2", "wrist", "front@-2", "front"]
    assert [source[i].observation.instruction for i in range(FRAMES)] == (
        ["reach"] * 3 + ["pull"] * 4 + ["push"] * 5
    )
    pipeline = Pipeline(nodes[:-1], source.spec)
    groups = [g.name for g in source.spec.action.groups]
    assert groups == ["eef_position", "eef_rotation", "arm", "grip"]
    for i in (0, 2, 8):
        state, actions, mask = source.numeric(i)
        assert mask.all()
        out_TA, _ = pipeline.targets(state, actions, mask)
        expected = np.linalg.inv(_pose(STATE[i : i + 1])[0]) @ _pose(ACTION[i : i + horizon])
        np.testing.assert_allclose(out_TA[:, :3], expected[:, :3, 3], atol=1e-4)
        turned = rotations.to_matrix(out_TA[:, 3:9], "rotation_6d")
        np.testing.assert_allclose(turned, expected[:, :3, :3], atol=1e-4)
        np.testing.assert_allclose(out_TA[:, 9:15], ACTION[i : i + horizon, 9:15] - STATE[i, 9:15], atol=1e-5)
        np.testing.assert_array_equal(out_TA[:, 15], ACTION[i : i + horizon, 15])
        back = pipeline.inverse(out_TA, state)
        np.testing.assert_allclose(back, actions, atol=1e-4)
    rows = lambda: (source.numeric(i) for i in range(len(source)))  # noqa: E731
    whole = Pipeline(nodes, source.spec, rows=rows)
    assert nodes[-1]["groups"] == {"state.joints": "mean_std"}
    # Relative actions have a range for each step, over the chunks that reach it.
    assert nodes[-1]["by_step"] == ["arm", "eef_position", "eef_rotation"]
    reached = [(ACTION[i + 2, 9:15] - STATE[i, 9:15]) for i in (*range(5), *range(7, 10))]
    each = whole.statistics["action_by_step"]
    np.testing.assert_allclose(each.min.reshape(horizon, -1)[2, 9:15], np.min(reached, 0), atol=1e-5)
    np.testing.assert_allclose(each.max.reshape(horizon, -1)[2, 9:15], np.max(reached, 0), atol=1e-5)
    first = whole(source[0]).observation.state
    joints = source.spec.observation.state_slices()["joints"]
    raw = source.rows("state")[:, joints]
    np.testing.assert_allclose(first[joints], (raw[0] - raw.mean(0)) / raw.std(0), atol=1e-4)


def test_json_of_a_checkpoint_reads_alike(data, written):
    config = {
        "video": {"delta_indices": [0], "modality_keys": ["front"]},
        "action": {
            "delta_indices": [0, 1],
            "modality_keys": ["grip"],
            "action_configs": [{"rep": "DELTA", "type": "NON_EEF", "format": "DEFAULT", "state_key": None}],
        },
    }
    file = written(json.dumps({"modality_configs": {"mine": config}}), "processor.json")
    found = translate(data, file)
    assert [(g.name, g.representation) for g in found.robot.action] == [("grip", "delta")]
    assert found.robot.state == ()
    assert "observation_delta_indices" not in found.overlay["datasets"]["train"][0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("list(range(HORIZON))", "[0, 2, 4]", "are not the steps from now on"),
        ("list(range(HORIZON))", "make()", r"config.py:\d+: 'make\(\)' is no literal"),
        ("XYZ_ROT6D", "DEFAULT", "as matrices of 4 x 4"),
        ("XYZ_ROT6D", "XYZ_ROTVEC", "XYZ_ROTVEC has 6 dims"),
        ("XYZ_ROT6D", "XYZ", "format 'XYZ' is none of"),
        ('state_key="joints"', 'state_key="joint"', "relative to the state 'joint'"),
        ('[-2, 0], modality_keys=["wrist"', '[0], modality_keys=["wrist"', "of the same moments"),
        ("mean_std_embedding_keys", "sin_cos_embedding_keys", "sines and cosines"),
        ('"sub_task"', '"annotation.human.x"', "no annotation 'human.x'"),
        ('"wrist", "front"', '"wrist", "side"', "no camera 'side'"),
        (
            "ActionFormat.DEFAULT, state_key",
            "ActionFormat.XYZ_ROTVEC, state_key",
            "subtracted",
        ),
        ("mean_std_embedding_keys", "mean_keys", "state.mean_keys is unknown"),
    ],
)
def test_what_has_no_equal_is_refused_in_one_line(data, written, old, new, words):
    assert old in CONFIG
    with pytest.raises(UserError, match=words) as error:
        translate(data, written(CONFIG.replace(old, new)))
    assert "\n" not in str(error.value)


def test_several_configs_must_be_chosen_from(data, written):
    file = written(CONFIG + CONFIG.replace("my_config", "other"))
    with pytest.raises(UserError, match=r"choose with --name: my_config, other"):
        translate(data, file)
    assert translate(data, file, "other").overlay["framework"]["horizon"] == 4


def test_frames_outside_all_sub_tasks(data, tmp_path):
    robot = tmp_path / "robot.yaml"
    robot.write_text("embodiment: a\naction: [{name: all}]\ninstruction_key: [sub_task]\n")
    file = data / "meta/episodes.jsonl"
    before = file.read_text()
    try:
        file.write_text(before.replace('"start": 3', '"start": 4'))
        with pytest.raises(UserError, match=r"episode 0, frame 3: no instruction \(no sub_task covers it"):
            LeRobotSource(LeRobotConfig(str(data), robot=str(robot)), 2)
        robot.write_text(robot.read_text().replace("[sub_task]", "[sub_task, task_index]"))
        source = LeRobotSource(LeRobotConfig(str(data), robot=str(robot)), 2)
        assert source[3].observation.instruction not in ("reach", "pull")
        file.write_text(before.replace('"text": "pull"', '"text": 3'))
        with pytest.raises(UserError, match=r"sub_tasks: .* is no text from a frame to a later one"):
            LeRobotSource(LeRobotConfig(str(data), robot=str(robot)), 2)
    finally:
        file.write_text(before)


def test_a_converted_copy_says_what_it_lacks(data, tmp_path):
    report = convert(data, tmp_path / "v3")
    assert [remark for remark in report.remarks if "sub_tasks" in remark]


def test_a_modality_config_that_is_not_there_is_no_python_error(data, tmp_path, capsys):
    missing = tmp_path / "none.py"
    assert main(["groot", str(data), str(missing), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"vla-data groot: {missing} cannot be read or written (No such file or directory)\n"
