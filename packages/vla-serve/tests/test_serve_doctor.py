"""``vla-serve doctor``: every usual mistake, made in a recording, is named through a real server."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from vla_core import registry
from vla_core.errors import UserError
from vla_core.images import inside, pad, resize
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_spec
from vla_core.types import ActionChunk, Observation, Sample
from vla_serve import PolicyServer
from vla_serve.doctor.diagnosis import Diagnosis
from vla_serve.doctor.errors import Yardstick
from vla_serve.doctor.frames import Frames, check_replayable
from vla_serve.doctor.report import error_lines
from vla_serve.server_cli import main

SIZE, HORIZON, COUNT = 16, 3, 16
GROUPS = (
    GroupSpec("position", 3, "m"),
    GroupSpec("rotation", 3, "rad", rotation="axis_angle"),
    GroupSpec("gripper", 1, "1", gripper="open_positive"),
)
SPEC = RobotSpec(
    ObservationSpec((CameraSpec("front", SIZE, SIZE), CameraSpec("wrist", SIZE, SIZE)), GROUPS[:2]),
    ActionSpec(GROUPS, HORIZON, 10.0),
    embodiment="arm",
)
OFFSET = np.array([0.4, -0.3, 0.5, 0, 0, 0, 0])


def features(images):
    """Eight numbers in -1 to 1 that change with every mistake one can make with two pictures."""
    front, wrist = (np.asarray(images[name], np.float64) / 127.5 - 1 for name in ("front", "wrist"))
    half = SIZE // 2
    return np.array(
        [
            front[:half, :half, 0].mean(),
            front[half:, :half, 2].mean(),
            front[:half, half:, 1].mean(),
            wrist[:half, :half, 2].mean(),
            wrist[half:, half:, 0].mean(),
            wrist[:half, half:, 0].mean(),
            front[:half, :half, 2].mean() - wrist[half:, :half, 1].mean(),
            front[: SIZE // 8].mean(),
        ]
    )


def answer(observation):
    """``[T, 7]``: an absolute target that begins at the state, a turn, and an open or closed hand."""
    f, state = features(observation.images), np.asarray(observation.state, np.float64)
    steps = np.arange(1, HORIZON + 1)[:, None]
    position = state[:3] + 0.4 * steps * (f[:3] + np.array([0.5 * f[7], 0.0, 0.0]))
    rotation = np.repeat((0.5 * f[3:6] + 0.5 * state[3:])[None], HORIZON, 0)
    gripper = np.full((HORIZON, 1), float(f[6] > 0))
    return np.concatenate([position, rotation, gripper], 1)


class Seeing:
    """Answers as recorded; embodiment ``other`` with other statistics, ``blind`` whatever the noise says, and
    ``rough`` about half as far from it as knowing nothing, as a trained policy does.
    """

    framework = "Seeing"

    def __init__(self, names=("arm",)):
        self.specs = {name: replace(SPEC, embodiment=name) for name in names}

    def act(self, observations, seeds, steps=None):
        chunks = []
        for o, seed in zip(observations, seeds, strict=True):
            actions = answer(o)
            if o.embodiment == "other":
                actions = actions * 2.5 + OFFSET
            if o.embodiment == "rough":
                actions = actions + np.random.default_rng(seed).normal(size=actions.shape) * 0.52 * SPREAD
            if o.embodiment == "deaf":
                actions = answer(replace(o, images=SCENES[0].images))
            if o.embodiment == "blind":
                actions = np.random.default_rng(seed).normal(size=actions.shape)
            chunks.append(ActionChunk(actions.astype(np.float32), SPEC.action))
        return chunks


def scene(rng):
    def picture():
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return np.asarray(coarse).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)

    state = rng.uniform(-0.5, 0.5, 6).astype(np.float32) + np.float32([2, 1, 0, 0, 0, 0])
    return Observation({"front": picture(), "wrist": picture()}, "reach", state)


SCENES = [scene(np.random.default_rng(n)) for n in range(COUNT)]
SPREAD = np.stack([answer(s) for s in SCENES]).std((0, 1))
STATES = VectorStats.from_rows(np.stack([s.state for s in SCENES]))
STATISTICS = NormStats({"state": STATES})


def boxed(image):
    return pad(resize(image, *inside((3, 4), (SIZE, SIZE))), SIZE, SIZE)


def normalised(state):
    return ((state - STATES.mean) / STATES.std).astype(np.float32)


def images(change):
    return lambda o: replace(o, images={name: change(image) for name, image in o.images.items()})


def same(value):
    return value


@dataclass
class Fault:
    """``seen`` is what was recorded, or a client sends, of a scene; ``known`` what the policy knows."""

    words: str
    seen: object = same
    known: object = same
    acted: object = same
    embodiment: str = "arm"


def part(change, where):
    def acted(actions, state):
        out = actions.copy()
        out[:, where] = change(actions[:, where], state[where])
        return out

    return acted


FAULTS = {
    "nothing": Fault(""),
    "cameras swapped": Fault(
        "cameras swapped: wrist shows what belongs to front, front shows what belongs to wrist",
        lambda o: replace(o, images={"front": o.images["wrist"], "wrist": o.images["front"]}),
    ),
    "BGR": Fault("images: RGB/BGR\n", images(lambda image: image[..., ::-1])),
    "upside down": Fault("images: flipped top to bottom\n", images(lambda image: image[::-1])),
    "mirrored": Fault("images: flipped left to right\n", images(lambda image: image[:, ::-1])),
    "one camera turned": Fault(
        "images: turned by 180 degrees (camera wrist alone)",
        lambda o: replace(o, images={**o.images, "wrist": o.images["wrist"][::-1, ::-1]}),
    ),
    "letterboxed": Fault("images: wrong resize: letterboxed from 4:3", images(boxed)),
    "stretched": Fault("images: wrong resize: stretched from 4:3", known=images(boxed)),
    "state normalised": Fault(
        "state: normalised (mean and standard deviation) where it must be in real units",
        lambda o: replace(o, state=normalised(o.state)),
    ),
    "state not normalised": Fault(
        "state: un-normalised where the policy knows it normalised (mean and standard deviation)",
        known=lambda o: replace(o, state=normalised(o.state)),
    ),
    "degrees": Fault(
        "state: rotation in degrees where it must be radians",
        lambda o: replace(o, state=o.state * np.float32([1, 1, 1, 57.29578, 57.29578, 57.29578])),
    ),
    "gripper": Fault("actions: polarity of gripper", acted=part(lambda a, s: 1 - a, slice(6, 7))),
    "recorded offsets": Fault(
        "answers are absolute, the recording offsets from the state",
        acted=part(lambda a, s: a - s, slice(0, 3)),
    ),
    "recorded deltas": Fault(
        "answers are absolute, the recording deltas of each step",
        acted=part(lambda a, s: np.diff(np.concatenate([s[None], a]), axis=0), slice(0, 3)),
    ),
    "statistics of another robot": Fault(
        "wrong statistics key: embodiment 'arm' of the policy answers as recorded", embodiment="other"
    ),
}


QUICK = ("nothing", "BGR", "gripper")
"""A second or two each."""


def source(fault):
    """A source of data (entry point ``vla.sources``) that holds the scenes with a fault."""

    @dataclass(frozen=True)
    class Config:
        path: str
        count: int = COUNT

    class Recorded:
        spec = replace(SPEC, statistics=STATISTICS)

        def __init__(self, config, horizon, episodes=None):
            assert horizon == HORIZON
            self._count = config.count

        def __len__(self):
            return self._count

        def __getitem__(self, index):
            true = SCENES[index]
            actions = answer(fault.known(true))
            if fault.acted is not same:
                actions = fault.acted(actions, np.append(true.state, 0.0))
            noise = np.random.default_rng(index).normal(size=actions.shape) * 0.01
            mask = np.ones(actions.shape, np.bool_)
            mask[HORIZON - index % 2 :] = False  # some episodes end before the chunk does
            return Sample(fault.seen(true), (actions + noise).astype(np.float32), mask)

    Recorded.Config = Config
    return Recorded


@pytest.fixture(scope="module")
def server():
    with PolicyServer(Seeing(("arm", "other", "blind"))) as running:
        yield running


def doctor(address, fault, *words):
    undo = registry.override("vla.sources", "recorded", source(fault))
    try:
        here = ("--address", address, "--embodiment", fault.embodiment)
        return main(["doctor", *here, "--data", "here", "--source", "recorded", *words])
    finally:
        undo()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAULTS],
)
def test_a_fault_is_named(server, capsys, name):
    fault = FAULTS[name]
    code = doctor(server.address, fault)
    said = capsys.readouterr().out
    if not fault.words:
        assert code == 0
        assert "The answers follow the recording: nothing to explain" in said
    else:
        assert code == 1
        explained = said.partition("\nExplained by: ")[2].partition("Undone")[0]
        assert fault.words in explained, said
        assert " that help less (--all shows them)" in said


@pytest.fixture(scope="module")
def rough_server():
    with PolicyServer(Seeing(("rough",))) as running:
        yield running


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "state normalised" else pytest.mark.slow)
        for name, fault in FAULTS.items()
        # Against deltas of a step, or offsets, half of the spread of absolute targets is no answer at all.
        if fault.embodiment == "arm" and not name.startswith("recorded")
    ],
)
def test_a_fault_is_named_around_a_policy_that_is_not_perfect(rough_server, capsys, name):
    fault = replace(FAULTS[name], embodiment="rough")
    doctor(rough_server.address, fault)
    said = capsys.readouterr().out
    if fault.words:
        assert fault.words in said.partition("\nExplained by: ")[2].partition("Undone")[0], said
    else:
        assert "Explained by" not in said
        assert "does not follow" not in said


@pytest.mark.slow
def test_no_cause_is_named_for_answers_that_mean_nothing(server, capsys):
    assert doctor(server.address, Fault("", embodiment="blind")) == 1
    said = capsys.readouterr().out
    # Another embodiment does answer as recorded; without it nothing does.
    assert "Explained by: wrong statistics key: embodiment 'arm'" in said
    with PolicyServer(Seeing(("blind",))) as lonely:
        assert doctor(lonely.address, Fault("", embodiment="blind")) == 1
    assert "None of these explains the difference" in capsys.readouterr().out


def test_statistics_that_no_robot_of_the_policy_has(capsys):
    with PolicyServer(Seeing(("other",))) as server:
        assert doctor(server.address, Fault("", embodiment="other")) == 1
    explained = capsys.readouterr().out.partition("\nExplained by: ")[2]
    assert explained.startswith(
        "wrong statistics: answers x factor + offset would be as recorded (dim 0: x 0."
    )


def test_images_that_do_not_matter_are_said(capsys):
    with PolicyServer(Seeing(("deaf",))) as server:
        assert doctor(server.address, Fault("", embodiment="deaf"), "--frames", "8") == 1
    said = capsys.readouterr().out
    assert "None of these explains the difference" in said
    assert "The images hardly matter: no change of them moved the answers by more than 0.0%" in said


def test_a_group_that_never_moves_is_measured_by_its_size():
    actions = np.random.default_rng(0).normal(size=(4, HORIZON, 7))
    actions[..., 6] = -0.5
    yardstick = Yardstick(SPEC.action, Frames(SPEC, (), actions, np.ones(actions.shape, np.bool_)))
    answers = actions + np.array([0, 0, 0, 0, 0, 0, 0.2])
    assert yardstick.still().tolist() == [False, False, True]
    np.testing.assert_allclose(yardstick.scores(answers), [0, 0, 0.4], atol=1e-6)
    *_, row, _ = error_lines(yardstick, Diagnosis(answers, yardstick.scores(answers)))
    assert row.endswith(" 40%  (never moves in these frames: of its size)")


@pytest.mark.parametrize(("known", "score"), [(None, 0.01), (np.zeros(7), 0.01), (np.full(7, 0.5), 0.02)])
def test_a_group_that_is_always_0_is_measured_too(known, score):
    """By the data's other frames (a gripper that is open in these), else by its unit."""
    actions = np.random.default_rng(0).normal(size=(4, HORIZON, 7))
    actions[..., 6] = 0.0
    statistics = {} if known is None else {"action": VectorStats.from_rows(np.stack([0 * known, known]))}
    spec = replace(SPEC, statistics=NormStats(statistics))
    yardstick = Yardstick(spec.action, Frames(spec, (), actions, np.ones(actions.shape, np.bool_)))
    answers = actions + np.array([0, 0, 0, 0, 0, 0, 0.01])
    assert yardstick.still().tolist() == [False, False, True]
    np.testing.assert_allclose(yardstick.scores(answers), [0, 0, score], atol=1e-6)


def test_states_that_are_wrong_on_purpose_are_no_news(caplog):
    policy = Seeing()
    degrees = (replace(GROUPS[0], unit="deg"), GROUPS[1])  # tried as radians: 57 times as far
    sees = ObservationSpec(SPEC.observation.cameras, degrees)
    elsewhere = VectorStats.from_rows(np.random.default_rng(0).random((50, 6)) + 900)
    policy.specs = {
        "arm": replace(SPEC, observation=sees, statistics=STATISTICS),
        "far": replace(SPEC, embodiment="far", statistics=NormStats({"state": elsewhere})),
    }
    with PolicyServer(policy) as server:
        assert doctor(server.address, Fault("", embodiment="arm"), "--all", "--frames", "8") == 0
    said = [r.name for r in caplog.records if "another unit" in r.getMessage()]
    assert set(said) == {"vla_serve.server"}, "the server's log has them, the doctor's does not"


def test_the_report_is_in_real_units_and_by_step(server, capsys):
    wrong = Fault("", acted=part(lambda a, s: a + 0.02 * np.arange(1, HORIZON + 1)[:, None], slice(0, 3)))
    assert doctor(server.address, wrong, "--all", "--frames", "8", "--data.count", "10") == 0
    said = capsys.readouterr().out
    assert "8 frames of here" in said
    row = said.partition("position")[2].partition("position")[2].partition("by step: ")[2].split()[:3]
    np.testing.assert_allclose([float(value) for value in row], [0.02, 0.04, 0.06], atol=0.01)
    assert "The answers follow the recording, and nothing that was tried is better" in said
    assert "hardly" not in said
    assert said.count("(camera wrist alone)") == 8


CLIENT = """
from dataclasses import replace
def send(observation):
    return replace(observation, images={k: v[..., ::-1].copy() for k, v in observation.images.items()})
def show(observation):
    return observation.images
"""


def test_a_mistake_in_the_robots_own_code_is_named(server, capsys, tmp_path):
    (tmp_path / "robot.py").write_text(CLIENT)
    assert doctor(server.address, Fault(""), "--client", f"{tmp_path}/robot.py:send", "--frames", "12") == 1
    assert "Explained by: images: RGB/BGR\n" in capsys.readouterr().out
    for name, words in (
        (f"{tmp_path}/robot.py:show", "it returned a dict, expected an Observation"),
        (f"{tmp_path}/robot.py:sent", "has no function 'sent'"),
        (f"{tmp_path}/none.py:send", "cannot be imported"),
        ("no_such_module:send", "cannot be imported"),
        ("send", "is neither FILE.py:FUNCTION nor MODULE:FUNCTION"),
    ):
        assert doctor(server.address, Fault(""), "--client", name) == 2
        assert words in capsys.readouterr().err


def test_what_cannot_be_replayed_is_said(server, capsys, tmp_path):
    for words, expected in (
        (["--data", str(tmp_path)], "has none of arrays.json, meta/info.json"),
        (["--data", "here", "--source", "nobody"], "no 'nobody' in vla.sources"),
        (["--data", "here", "--frames", "0"], "--frames must be at least 1"),
        (["--data", "here", "--dta.x", "1"], "unknown argument '--dta.x'"),
        (["--data", "here", "--data.x"], "--data.x: a value is missing"),
    ):
        assert main(["doctor", "--address", server.address, "--embodiment", "arm", *words]) == 2
        assert expected in capsys.readouterr().err
    other = make_spec()
    with pytest.raises(UserError, match="no camera 'front', which the policy needs; it has camera_0"):
        check_replayable(SPEC, other)
    with pytest.raises(UserError, match="actions have 3 dims"):
        check_replayable(SPEC, replace(SPEC, action=replace(SPEC.action, groups=GROUPS[:1])))
